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
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "$0")/common.sh"

for node in 1 2 3; do
    address=$(address_of $node)
    cat >"$dir/$node.conf" <<END
server_name: n$node
listen: $address:4222
jetstream { store_dir: "$dir/data-$node", sync_interval: always }
cluster { name: peers, listen: $address:6222, routes: [nats://$address1:6222, nats://$address2:6222, nats://$address3:6222] }
END
    start_node $node "$bin/nats-server" -c "$dir/$node.conf"
done

nats() {
    "$bin/nats" --server "nats://$address1:4222" --timeout 60s "$@"
}
until_it_does 20 stream "NATS took no stream" \
    nats stream add peers --subjects 'peers.>' --storage file --replicas 3 --retention limits --discard old --defaults
# The leader is to be beside the client.
tries=0
until nats stream info peers --json | grep -q '"leader": *"n1"'; do
    tries=$((tries + 1))
    [ $tries -lt 10 ] || { echo "server 1 does not lead the stream" >&2; exit 1; }
    nats stream cluster step-down peers --preferred n1 >/dev/null 2>&1 || true
    sleep 1
done

echo "nats, $in_flight in flight:"
metered $((records * size)) nats bench js pub async peers.a --stream peers --msgs "$records" --size "$size" --batch "$in_flight" --no-progress
echo "nats, one in flight:"
ones=$((records / 100 + 100))
metered $((ones * size)) nats bench js pub sync peers.a --stream peers --msgs $ones --size "$size" --no-progress
