#!/bin/sh
# Kafka on the links of a lab: three brokers that are their own controllers, replication factor 3, min.insync.replicas 2, acks=all,
# every append synced to disk (log.flush.interval.messages=1), one leader for all partitions, the producer on its host.
#
#   quorate bench lab --hosts 3 LINK-FLAGS -- benches/peers/kafka.sh LIBS [RECORDS [SIZE [PARTITIONS]]]
#
# LIBS is a folder with the jars; README.md says how to get them. Data goes to a temporary folder (TMPDIR), which is removed.
set -eu

libs=${1:?the folder with the jars}
records=${2:-100000}
size=${3:-1024}
partitions=${4:-16}
# shellcheck source=SCRIPTDIR/common.sh
. "$(dirname "$0")/common.sh"

cp="$libs/*"
voters="1@$address1:9093,2@$address2:9093,3@$address3:9093"
id=4L6g3nShT-eMCtK--X86sw
for node in 1 2 3; do
    address=$(address_of $node)
    cat >"$dir/$node.properties" <<END
process.roles=broker,controller
node.id=$node
controller.quorum.voters=$voters
listeners=PLAINTEXT://$address:9092,CONTROLLER://$address:9093
advertised.listeners=PLAINTEXT://$address:9092
controller.listener.names=CONTROLLER
inter.broker.listener.name=PLAINTEXT
log.dirs=$dir/data-$node
log.flush.interval.messages=1
min.insync.replicas=2
default.replication.factor=3
offsets.topic.replication.factor=3
auto.create.topics.enable=false
auto.leader.rebalance.enable=false
socket.send.buffer.bytes=-1
socket.receive.buffer.bytes=-1
replica.socket.receive.buffer.bytes=-1
END
    java -cp "$cp" kafka.tools.StorageTool format -t $id -c "$dir/$node.properties" >"$dir/$node.log" 2>&1
    start_node $node java -Xmx512m -cp "$cp" kafka.Kafka "$dir/$node.properties"
done

# Every partition is led by broker 1. Brokers take a while to come.
assignment=$(seq -s, "$partitions" | sed 's/[0-9][0-9]*/1:2:3/g')
until_it_does 10 topic "Kafka took no topic" \
    java -cp "$cp" org.apache.kafka.tools.TopicCommand --bootstrap-server "$address1:9092" --create --topic peers \
    --replica-assignment "$assignment"

produce() {
    java -Xmx512m -cp "$cp" org.apache.kafka.tools.ProducerPerformance --topic peers --num-records "$1" --record-size "$size" \
        --throughput "${2:--1}" --producer-props bootstrap.servers="$address1:9092" acks=all linger.ms=0 \
        buffer.memory=67108864 delivery.timeout.ms=300000 request.timeout.ms=120000
}
produce $((records / 10 + 1)) >"$dir/warmup.log" 2>&1 || { tail -n 5 "$dir/warmup.log" >&2; exit 1; }
last_line() { "$@" | tail -1; }
echo "kafka, as fast as it takes them:"
metered $((records * size)) last_line produce "$records"
# At a quarter of that rate, so that latency is not that of a full buffer.
rate=$(produce $((records / 4 + 1)) | tail -1 | sed 's/.* \([0-9][0-9]*\)\.[0-9]* records\/sec.*/\1/')
rate=$((rate / 4 + 1))
echo "kafka, at $rate records/s:"
metered $((rate * 10 * size)) last_line produce $((rate * 10)) "$rate"
