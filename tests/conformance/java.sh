#!/bin/sh
# Apache Kafka's own clients and tools, from Maven Central by their names: kafka-tools and kafka_2.13 with kafka-clients.
#
# usage: java.sh DIR BOOTSTRAP [VERSION]      DIR keeps what was fetched. Needs mvn and Java 17.
#
# Prints one line for each thing tried: "ok" or "FAILED" with the end of what was said. Ends with 1 where anything failed.
set -u
here=$(cd "$(dirname "$0")" && pwd)
dir=$1
bootstrap=$2
version=${3:-4.1.0}
jars=$dir/jars-$version
failed=0
if [ ! -d "$jars" ]; then
    mvn -q -B -f "$here/java/pom.xml" "-Dkafka.version=$version" dependency:copy-dependencies "-DoutputDirectory=$jars" || exit 2
fi
run=java-$(date +%s)
out=$dir/out
log=-Dorg.slf4j.simpleLogger.defaultLogLevel=warn

tool() {
    class=$1
    shift
    timeout 120 java -Xmx256m "$log" -cp "$jars/*" "$class" "$@"
}

# tried WHAT EXPECTED COMMAND…: the command ends well, and says EXPECTED.
tried() {
    what=$1
    expected=$2
    shift 2
    if "$@" > "$out" 2>&1 && grep -q -e "$expected" "$out"; then
        echo "kafka $version: $what: ok"
    else
        failed=1
        echo "kafka $version: $what: FAILED: $(tail -n 5 "$out" | tr '\n' ' ' | cut -c 1-400)"
    fi
}

tools=org.apache.kafka.tools
producer() {
    seq 1 100 | sed 's/^/value /' | tool $tools.ConsoleProducer --bootstrap-server "$bootstrap" --topic "$run" "$@"
    echo "exit $?"
}
read_group() {
    tool $tools.consumer.ConsoleConsumer --bootstrap-server "$bootstrap" --topic "$run" --from-beginning --group "$run" \
        --max-messages "$1" --timeout-ms 30000
}
read_newer() {
    tool $tools.consumer.ConsoleConsumer --bootstrap-server "$bootstrap" --topic "$run" --from-beginning --group "$run-newer" \
        --consumer-property group.protocol=consumer --max-messages "$1" --timeout-ms 30000
}
verifiable_newer() {
    timeout 60 java "$log" -cp "$jars/*" $tools.VerifiableConsumer --bootstrap-server "$bootstrap" --topic "$run-v" \
        --group-id "$run-v-newer" --max-messages 2000 --reset-policy earliest --group-protocol consumer --group-remote-assignor range
}
verifiable_consumer() {
    timeout 60 java "$log" -cp "$jars/*" $tools.VerifiableConsumer --bootstrap-server "$bootstrap" --topic "$run-v" \
        --group-id "$run-v" --max-messages 2000 --reset-policy earliest
}

tried "kafka-topics --create" "Created topic" tool $tools.TopicCommand --bootstrap-server "$bootstrap" --create --topic "$run" --partitions 3
tried "kafka-topics --describe" "PartitionCount: 3" tool $tools.TopicCommand --bootstrap-server "$bootstrap" --describe --topic "$run"
for codec in none gzip snappy lz4 zstd; do
    tried "console producer, idempotent, $codec" "exit 0" producer --compression-codec $codec
done
tried "console consumer in a group" "Processed a total of 500 messages" read_group 500
producer > /dev/null 2>&1
tried "the group resumes where it has committed" "Processed a total of 100 messages" read_group 100
tried "console consumer in a group of the newer protocol" "Processed a total of 600 messages" read_newer 600
producer > /dev/null 2>&1
tried "the newer group resumes where it has committed" "Processed a total of 100 messages" read_newer 100
tried "kafka-consumer-groups --describe of the newer protocol" " 0 " tool $tools.consumer.group.ConsumerGroupCommand \
    --bootstrap-server "$bootstrap" --describe --group "$run-newer"
tried "kafka-consumer-groups --list --type consumer" "$run-newer" tool $tools.consumer.group.ConsumerGroupCommand \
    --bootstrap-server "$bootstrap" --list --type consumer
tried "kafka-consumer-groups --delete of the newer protocol" "was successful" tool $tools.consumer.group.ConsumerGroupCommand \
    --bootstrap-server "$bootstrap" --delete --group "$run-newer"
tried "kafka-consumer-groups --describe" " 0 " tool $tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$bootstrap" --describe --group "$run"
tried "kafka-consumer-groups --reset-offsets" "$run" tool $tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$bootstrap" \
    --group "$run" --topic "$run" --reset-offsets --to-earliest --execute
tried "kafka-consumer-groups --delete-offsets" "Request succeed" tool $tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$bootstrap" \
    --group "$run" --topic "$run" --delete-offsets
tried "kafka-get-offsets --time latest" "$run:2:" tool $tools.GetOffsetShell --bootstrap-server "$bootstrap" --topic "$run" --time latest
tried "kafka-get-offsets --time max-timestamp" "$run" tool $tools.GetOffsetShell --bootstrap-server "$bootstrap" --topic "$run" --time max-timestamp
printf '{"version":1,"partitions":[{"topic":"%s","partition":0,"offset":-1}]}' "$run" > "$dir/delete.json"
tried "kafka-delete-records" "low_watermark" tool $tools.DeleteRecordsCommand --bootstrap-server "$bootstrap" --offset-json-file "$dir/delete.json"
tried "kafka-configs --alter --entity-type topics" "Completed" tool kafka.admin.ConfigCommand --bootstrap-server "$bootstrap" --alter \
    --entity-type topics --entity-name "$run" --add-config retention.ms=3600000
tried "kafka-configs --describe --entity-type topics" "retention.ms=3600000" tool kafka.admin.ConfigCommand --bootstrap-server "$bootstrap" \
    --describe --entity-type topics --entity-name "$run"
tried "kafka-configs --alter --entity-type users" "Completed" tool kafka.admin.ConfigCommand --bootstrap-server "$bootstrap" --alter \
    --entity-type users --entity-name "$run" --add-config 'SCRAM-SHA-256=[iterations=8192,password=secret]'
tried "kafka-configs --describe --entity-type users" "SCRAM-SHA-256=iterations=8192" tool kafka.admin.ConfigCommand \
    --bootstrap-server "$bootstrap" --describe --entity-type users --entity-name "$run"
tried "VerifiableProducer" '"sent":2000,"acked":2000' tool $tools.VerifiableProducer --bootstrap-server "$bootstrap" --topic "$run-v" --max-messages 2000
tried "VerifiableConsumer" "offsets_committed" verifiable_consumer
tried "VerifiableConsumer of the newer protocol" "offsets_committed" verifiable_newer
tried "kafka-producer-perf-test" "20000 records sent" tool $tools.ProducerPerformance --topic "$run" --num-records 20000 --record-size 1000 \
    --throughput -1 --producer-props "bootstrap.servers=$bootstrap" acks=all
tried "kafka-producer-perf-test with transactions" "5000 records sent" tool $tools.ProducerPerformance --topic "$run" --num-records 5000 \
    --record-size 100 --throughput 1000 --transactional-id "$run" --transaction-duration-ms 50 --producer-props "bootstrap.servers=$bootstrap" acks=all
tried "kafka-transactions --describe" "CompleteCommit" tool $tools.TransactionsCommand --bootstrap-server "$bootstrap" describe --transactional-id "$run"
tried "kafka-features --describe" "transaction.version.*FinalizedVersionLevel: 2" tool $tools.FeatureCommand --bootstrap-server "$bootstrap" describe
tried "kafka-consumer-perf-test" "MB.sec" tool $tools.ConsumerPerformance --bootstrap-server "$bootstrap" --topic "$run" --messages 20000
tried "kafka-consumer-groups --delete" "was successful" tool $tools.consumer.group.ConsumerGroupCommand --bootstrap-server "$bootstrap" --delete --group "$run"
delete_topic() {
    tool $tools.TopicCommand --bootstrap-server "$bootstrap" --delete --topic "$run"
    echo "exit $?"
}
tried "kafka-topics --delete" "exit 0" delete_topic
exit $failed
