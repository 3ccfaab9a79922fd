#!/bin/sh
# Three nodes in DIR, each with a plaintext Kafka listener on 127.0.0.1, for as long as COMMAND runs. COMMAND finds their
# addresses in BOOTSTRAP, separated by commas; its exit code is this script's. Each node's log is DIR/node-N.log. The addresses in
# BOOTSTRAP_SASL want a login by SCRAM-SHA-256, as "tester" with the password "secret".
#
# usage: cluster.sh DIR COMMAND…      DIR is new or empty. QUORATE is the program (target/debug/quorate), PORT the first
#                                     of the nine ports (24700), SERVER_FLAGS what each node is started with besides.
set -u
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
    "$quorate" --certs-dir "$dir/certs-$node" cert create-node --ca-key "$certs/ca.key" $node 127.0.0.1 >> "$dir/certs.log" 2>&1 || exit 2
done
"$quorate" --certs-dir "$certs" cert create-client conformance >> "$dir/certs.log" 2>&1 || exit 2
controllers=1@127.0.0.1:$port,2@127.0.0.1:$((port + 1)),3@127.0.0.1:$((port + 2))
BOOTSTRAP=127.0.0.1:$((port + 3)),127.0.0.1:$((port + 4)),127.0.0.1:$((port + 5))
BOOTSTRAP_SASL=127.0.0.1:$((port + 6)),127.0.0.1:$((port + 7)),127.0.0.1:$((port + 8))
export BOOTSTRAP BOOTSTRAP_SASL
pids=
stop() {
    # The nodes alone, by their ids, and only then the end.
    [ -z "$pids" ] || kill $pids 2> /dev/null
    wait
}
trap stop EXIT
trap 'exit 130' INT TERM
for node in 1 2 3; do
    # shellcheck disable=SC2086 # flags are several words
    "$quorate" --certs-dir "$dir/certs-$node" server start --node-id $node --data-dir "$dir/data-$node" \
        --listen 127.0.0.1:$((port + node - 1)) --kafka-listen 127.0.0.1:$((port + node + 2)) --kafka-plaintext \
        --kafka-listener "sasl=sasl_plaintext://127.0.0.1:$((port + node + 5))" --controllers "$controllers" ${SERVER_FLAGS:-} > "$dir/node-$node.log" 2>&1 &
    pids="$pids $!"
done
tries=0
until "$quorate" --certs-dir "$certs" -b 127.0.0.1:"$port" --timeout 5s cluster status > "$dir/status.log" 2>&1; do
    tries=$((tries + 1))
    if [ $tries = 60 ]; then
        echo "the cluster in $dir is not healthy after a minute; see its logs:" >&2
        cat "$dir/status.log" >&2
        exit 2
    fi
    sleep 1
done
echo secret | "$quorate" --certs-dir "$certs" -b 127.0.0.1:"$port" user set tester > "$dir/user.log" 2>&1 || exit 2
"$@"
