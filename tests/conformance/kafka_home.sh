#!/bin/sh
# A folder that other clients' tests take for an installation of Kafka: KAFKA_PATH with libs/ and bin/, made of Kafka's own
# jars from Maven Central. No broker is ever started.
#
# usage: kafka_home.sh DIR [VERSION]      Needs mvn and Java 17.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1/bin"
dir=$(cd "$1" && pwd)
version=${2:-4.1.0}
if [ ! -d "$dir/libs" ]; then
    mvn -q -B -f "$here/java/pom.xml" "-Dkafka.version=$version" dependency:copy-dependencies "-DoutputDirectory=$dir/libs"
fi
cat > "$dir/bin/kafka-run-class.sh" << 'END'
#!/bin/sh
home=$(cd "$(dirname "$0")/.." && pwd)
exec java -Xmx256m -Dorg.slf4j.simpleLogger.defaultLogLevel=warn -cp "${CLASSPATH:-}:$home/libs/*" "$@"
END
tool() {
    printf '#!/bin/sh\nexec "$(dirname "$0")/kafka-run-class.sh" %s "$@"\n' "$2" > "$dir/bin/$1"
}
tool kafka-topics.sh org.apache.kafka.tools.TopicCommand
tool kafka-configs.sh kafka.admin.ConfigCommand
tool kafka-acls.sh kafka.admin.AclCommand
tool kafka-consumer-groups.sh org.apache.kafka.tools.consumer.group.ConsumerGroupCommand
chmod +x "$dir"/bin/*.sh
