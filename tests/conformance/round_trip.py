"""One client's round trip: produce in each compression, read all in a group, and resume where the group has committed.

usage: round_trip.py CLIENT BOOTSTRAP      CLIENT: kafka-python, aiokafka or confluent-kafka

Prints one line for each thing tried: "ok" or "FAILED", and why. Ends with 1 where anything failed.
"""

import asyncio
import sys
import time
import uuid

CLIENT, BOOTSTRAP = sys.argv[1:]
RUN = uuid.uuid4().hex[:8]
CODECS = [None, "gzip", "snappy", "lz4", "zstd"]
COUNT = 50
failed = False


def tried(what, work):
    global failed
    try:
        work()
        print(f"{CLIENT}: {what}: ok", flush=True)
    except Exception as error:
        failed = True
        print(f"{CLIENT}: {what}: FAILED: {type(error).__name__}: {error}"[:300], flush=True)


class KafkaPython:
    def produce(self, topic, codec, idempotent):
        from kafka import KafkaProducer

        producer = KafkaProducer(
            bootstrap_servers=BOOTSTRAP, acks="all", compression_type=codec, enable_idempotence=idempotent
        )
        sent = [producer.send(topic, key=b"k%d" % n, value=b"v%d" % n) for n in range(COUNT)]
        for future in sent:
            future.get(30)
        producer.close(10)

    def consume(self, topic, group, count):
        from kafka import KafkaConsumer

        consumer = KafkaConsumer(
            topic,
            bootstrap_servers=BOOTSTRAP,
            group_id=group,
            auto_offset_reset="earliest",
            enable_auto_commit=False,
            session_timeout_ms=6000,
            heartbeat_interval_ms=1000,
        )
        read, end = [], time.monotonic() + 30
        while len(read) < count and time.monotonic() < end:
            for records in consumer.poll(timeout_ms=500).values():
                read += [record.value for record in records]
        consumer.commit()
        consumer.close()
        return read

    def admin(self, topic):
        from kafka.admin import KafkaAdminClient, NewTopic

        admin = KafkaAdminClient(bootstrap_servers=BOOTSTRAP)
        admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
        admin.close()


class Confluent:
    def produce(self, topic, codec, idempotent):
        from confluent_kafka import Producer

        errors = []
        producer = Producer(
            {
                "bootstrap.servers": BOOTSTRAP,
                "acks": "all",
                "compression.type": codec or "none",
                "enable.idempotence": idempotent,
            }
        )
        for n in range(COUNT):
            producer.produce(topic, key=b"k%d" % n, value=b"v%d" % n, on_delivery=lambda e, _: e and errors.append(e))
        assert producer.flush(30) == 0 and not errors, errors[:3]

    def consume(self, topic, group, count):
        from confluent_kafka import Consumer

        consumer = Consumer(
            {
                "bootstrap.servers": BOOTSTRAP,
                "group.id": group,
                "auto.offset.reset": "earliest",
                "enable.auto.commit": False,
                "session.timeout.ms": 6000,
            }
        )
        consumer.subscribe([topic])
        read, end = [], time.monotonic() + 30
        while len(read) < count and time.monotonic() < end:
            message = consumer.poll(0.5)
            if message is not None:
                assert not message.error(), message.error()
                read.append(message.value())
        consumer.commit(asynchronous=False)
        consumer.close()
        return read

    def admin(self, topic):
        from confluent_kafka.admin import AdminClient, NewTopic

        # Kept until the answer is there: a handle that is dropped fails what it waits for.
        admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
        admin.create_topics([NewTopic(topic, 3, 1)])[topic].result(30)


class AioKafka:
    def produce(self, topic, codec, idempotent):
        async def work():
            from aiokafka import AIOKafkaProducer

            producer = AIOKafkaProducer(
                bootstrap_servers=BOOTSTRAP, acks="all", compression_type=codec, enable_idempotence=idempotent
            )
            await producer.start()
            try:
                sent = [await producer.send(topic, key=b"k%d" % n, value=b"v%d" % n) for n in range(COUNT)]
                await asyncio.wait_for(asyncio.gather(*sent), 30)
            finally:
                await producer.stop()

        asyncio.run(work())

    def consume(self, topic, group, count):
        async def work():
            from aiokafka import AIOKafkaConsumer

            consumer = AIOKafkaConsumer(
                topic,
                bootstrap_servers=BOOTSTRAP,
                group_id=group,
                auto_offset_reset="earliest",
                enable_auto_commit=False,
                session_timeout_ms=6000,
                heartbeat_interval_ms=1000,
            )
            await consumer.start()
            read, end = [], time.monotonic() + 30
            try:
                while len(read) < count and time.monotonic() < end:
                    for records in (await consumer.getmany(timeout_ms=500)).values():
                        read += [record.value for record in records]
                await consumer.commit()
            finally:
                await consumer.stop()
            return read

        return asyncio.run(work())

    def admin(self, topic):
        async def work():
            from aiokafka.admin import AIOKafkaAdminClient, NewTopic

            admin = AIOKafkaAdminClient(bootstrap_servers=BOOTSTRAP)
            await admin.start()
            try:
                await admin.create_topics([NewTopic(topic, num_partitions=3, replication_factor=1)])
            finally:
                await admin.close()

        asyncio.run(work())


client = {"kafka-python": KafkaPython, "confluent-kafka": Confluent, "aiokafka": AioKafka}[CLIENT]()
expected = sorted(b"v%d" % n for n in range(COUNT))
for codec in CODECS:
    topic = f"{CLIENT}-{codec}-{RUN}"
    tried(f"create a topic ({codec})", lambda: client.admin(topic))
    tried(f"produce, {codec}", lambda: client.produce(topic, codec, False))

    def reads():
        read = sorted(client.consume(topic, f"group-{topic}", COUNT))
        assert read == expected, f"{len(read)} records"

    tried(f"read in a group, {codec}", reads)

topic = f"{CLIENT}-None-{RUN}"
tried("produce, idempotent", lambda: client.produce(topic, None, True))


def resumes():
    read = sorted(client.consume(topic, f"group-{topic}", COUNT))
    assert read == expected, f"{len(read)} records"


tried("the group resumes where it has committed", resumes)
sys.exit(failed)
