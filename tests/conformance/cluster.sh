#!/bin/sh
# Three nodes in DIR, each with a plaintext Kafka listener on HOST, for as long as COMMAND runs. COMMAND finds their
# addresses in BOOTSTRAP, separated by commas; its exit code is this script's. Each node's log is DIR/node-N.log. The addresses in
# BOOTSTRAP_SASL want a login by SCRAM-SHA-256, as "tester" with the password "secret".
#
# COMMAND may end a node by the process id in DIR/node-N.pid, and has it started again by making the file DIR/node-N.restart; DIR is
# in CLUSTER_DIR, the address for quorate's own commands in CLUSTER_QUIC, their certificates are in DIR/certs-1.
#
# usage: cluster.sh DIR COMMAND…      DIR is new or empty. QUORATE is the program (target/debug/quorate), PORT the first
#                                     of the nine ports (24700), HOST their address (127.0.0.1; another one only in a
#                                     lab), SERVER_FLAGS what each node is started with besides.
set -u
host=${HOST:-127.0.0.1}
quorate=${QUORATE:-target/debug/quorate}
port=${PORT:-24700}
dir=$1
shift
mkdir -p "$dir"
certs=$dir/certs-1
"$quorate" --certs-dir "$certs" cert create-ca > "$dir/certs.log" 2>&1 || exit 2
for node in 1 2 3; do
    if [ $node != 1 ]; then
        mkdir "$dir/certs-$node"
        cp "$certs/ca.crt" "$dir/certs-$node/"
    fi
    "$quorate" --certs-dir "$dir/certs-$node" cert create-node --ca-key "$certs/ca.key" $node "$host" >> "$dir/certs.log" 2>&1 || exit 2
done
"$quorate" --certs-dir "$certs" cert create-client conformance >> "$dir/certs.log" 2>&1 || exit 2
controllers=1@$host:$port,2@$host:$((port + 1)),3@$host:$((port + 2))
BOOTSTRAP=$host:$((port + 3)),$host:$((port + 4)),$host:$((port + 5))
BOOTSTRAP_SASL=$host:$((port + 6)),$host:$((port + 7)),$host:$((port + 8))
CLUSTER_DIR=$dir
CLUSTER_QUIC=$host:$port,$host:$((port + 1)),$host:$((port + 2))
export BOOTSTRAP BOOTSTRAP_SASL CLUSTER_DIR CLUSTER_QUIC

# The flags for a listener without logins on port $1, and one with them on port $2.
listeners() {
    case $host in
        127.*) echo "--kafka-listen $host:$1 --kafka-plaintext --kafka-listener sasl=sasl_plaintext://$host:$2" ;;
        *)
            # A network of its own: that of a lab, whose hosts nobody else reaches.
            echo "--kafka-listener plain=plaintext://$host:$1,plaintext_beyond_loopback" \
                "--kafka-listener sasl=sasl_plaintext://$host:$2,plaintext_beyond_loopback"
            ;;
    esac
}

# Keeps node $1 as COMMAND wants it, until the end.
keep() {
    while [ ! -e "$dir/end" ]; do
        # shellcheck disable=SC2086 # flags are several words
        "$quorate" --certs-dir "$dir/certs-$1" server start --node-id "$1" --data-dir "$dir/data-$1" \
            --listen "$host:$((port + $1 - 1))" $(listeners $((port + $1 + 2)) $((port + $1 + 5))) \
            --controllers "$controllers" ${SERVER_FLAGS:-} >> "$dir/node-$1.log" 2>&1 &
        echo $! > "$dir/node-$1.pid.new"
        mv "$dir/node-$1.pid.new" "$dir/node-$1.pid"
        wait $!
        rm -f "$dir/node-$1.pid"
        until [ -e "$dir/end" ] || [ -e "$dir/node-$1.restart" ]; do
            sleep 0.1
        done
        rm -f "$dir/node-$1.restart"
    done
}
stop() {
    # The nodes alone, by their ids, once each, and only then the end. One that was about to start is seen by a later look.
    : > "$dir/end"
    told=" "
    while :; do
        for node in 1 2 3; do
            pid=$(cat "$dir/node-$node.pid" 2> /dev/null) || continue
            case $told in
                *" $pid "*) ;;
                *) kill "$pid" 2> /dev/null && told="$told$pid " ;;
            esac
        done
        running=
        for keeper in $keepers; do
            kill -0 "$keeper" 2> /dev/null && running=yes
        done
        [ -n "$running" ] || break
        sleep 0.1
    done
}
keepers=
trap stop EXIT
trap 'exit 130' INT TERM
for node in 1 2 3; do
    (
        trap - EXIT
        trap '' INT TERM
        keep $node 2>> "$dir/keeper.log"
    ) &
    keepers="$keepers $!"
done
tries=0
until "$quorate" --certs-dir "$certs" -b "$host":"$port" --timeout 5s cluster status > "$dir/status.log" 2>&1; do
    tries=$((tries + 1))
    if [ $tries = 60 ]; then
        echo "the cluster in $dir is not healthy after a minute; see its logs:" >&2
        cat "$dir/status.log" >&2
        exit 2
    fi
    sleep 1
done
echo secret | "$quorate" --certs-dir "$certs" -b "$host":"$port" user set tester > "$dir/user.log" 2>&1 || exit 2
"$@"
