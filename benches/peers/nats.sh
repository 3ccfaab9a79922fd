#!/bin/sh
# NATS JetStream on the links of a lab: three servers, one stream of three replicas in files, every write synced to disk
# (sync_interval: always), the client on the host of server 1, which leads the stream.
#
#   quorate bench lab --hosts 3 LINK-FLAGS -- benches/peers/nats.sh BIN [RECORDS [SIZE [IN-FLIGHT]]]
#
# BIN is a folder with nats-server and nats; README.md says how to get them. Data goes to a temporary folder (TMPDIR), which is
# removed.
set -eu

bin=${1:?the folder with nats-server and nats}
records=${2:-100000}
size=${3:-1024}
in_flight=${4:-256}
: "${LAB_HOSTS:?run this in a lab: quorate bench lab --hosts 3 -- $0 ...}"
# shellcheck disable=SC2086 # One word a host.
set -- $LAB_HOSTS
[ $# -ge 3 ] || { echo "a lab of 3 hosts is needed: --hosts 3" >&2; exit 2; }

dir=$(mktemp -d)
pids=
stop() {
    for pid in $pids; do kill -9 "$pid" 2>/dev/null || true; done
    wait 2>/dev/null || true
    rm -rf "$dir"
}
trap stop EXIT
trap 'exit 130' INT TERM

on_host() {
    namespace=$(echo "$LAB_NAMESPACES" | cut -d' ' -f"$1")
    shift
    exec ip netns exec "$namespace" "$@"
}

for node in 1 2 3; do
    address=$(echo "$LAB_HOSTS" | cut -d' ' -f$node)
    cat >"$dir/$node.conf" <<END
server_name: n$node
listen: $address:4222
jetstream { store_dir: "$dir/data-$node", sync_interval: always }
cluster { name: peers, listen: $address:6222, routes: [nats://$1:6222, nats://$2:6222, nats://$3:6222] }
END
    (on_host $node "$bin/nats-server" -c "$dir/$node.conf") >"$dir/$node.log" 2>&1 &
    pids="$pids $!"
done

nats() {
    "$bin/nats" --server "nats://$address1:4222" --timeout 60s "$@"
}
address1=$1
tries=0
until nats stream add peers --subjects 'peers.>' --storage file --replicas 3 --retention limits --discard old --defaults \
    >"$dir/stream.log" 2>&1; do
    tries=$((tries + 1))
    if [ $tries -ge 20 ]; then
        echo "NATS took no stream:" >&2
        tail -5 "$dir/stream.log" "$dir/1.log" >&2
        exit 1
    fi
    sleep 1
done
# The leader is to be beside the client.
tries=0
until nats stream info peers --json | grep -q '"leader": *"n1"'; do
    tries=$((tries + 1))
    [ $tries -lt 10 ] || { echo "server 1 does not lead the stream" >&2; exit 1; }
    nats stream cluster step-down peers --preferred n1 >/dev/null 2>&1 || true
    sleep 1
done

echo "nats, $in_flight in flight:"
nats bench js pub async peers.a --stream peers --msgs "$records" --size "$size" --batch "$in_flight" --no-progress
echo "nats, one in flight:"
nats bench js pub sync peers.a --stream peers --msgs $((records / 100 + 100)) --size "$size" --no-progress
