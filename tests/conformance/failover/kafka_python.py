"""kafka-python as a driver of failover.py; see driver.py."""

import time

from kafka import ConsumerRebalanceListener, KafkaConsumer, KafkaProducer, TopicPartition
from kafka.errors import KafkaError
from kafka.structs import OffsetAndMetadata

from driver import BATCH, due, is_to_abort, main, outcomes, say, stopping, why


def produce(bootstrap, topic, partitions, rate):
    producer = KafkaProducer(bootstrap_servers=bootstrap, acks="all", enable_idempotence=True, linger_ms=5)
    for number, wait in due(rate):
        time.sleep(wait)
        sent = producer.send(topic, b"%d" % number, partition=number % partitions)
        sent.add_callback(lambda placed, number=number: say("acked", number, placed.partition, placed.offset))
        sent.add_errback(lambda error, number=number: say("failed", number, why(error)))
    producer.flush(120)
    producer.close(10)


class Says(ConsumerRebalanceListener):
    def on_partitions_assigned(self, assigned):
        say("holds", *sorted(place.partition for place in assigned))

    def on_partitions_revoked(self, revoked):
        pass


def consumer_of(bootstrap, topic, group, **settings):
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap,
        group_id=group,
        auto_offset_reset="earliest",
        session_timeout_ms=10000,
        auto_commit_interval_ms=1000,
        **settings,
    )
    consumer.subscribe([topic], listener=Says())
    return consumer


def consume(bootstrap, topic, group):
    consumer = consumer_of(bootstrap, topic, group)
    while not stopping.is_set():
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                say("read", record.partition, record.offset, record.value.decode())
    consumer.close()


def transact(bootstrap, source, target, partitions, group, transactional_id):
    consumer = consumer_of(
        bootstrap,
        source,
        group,
        enable_auto_commit=False,
        isolation_level="read_committed",
        max_poll_records=BATCH,
    )

    def producer_of():
        producer = KafkaProducer(
            bootstrap_servers=bootstrap, transactional_id=transactional_id, transaction_timeout_ms=60000
        )
        producer.init_transactions()
        return producer

    def rewind():
        for place in consumer.assignment():
            consumer.seek(place, consumer.committed(place) or 0)

    producer, transaction = producer_of(), -1
    while True:
        batch = consumer.poll(timeout_ms=500)
        if not batch:
            if stopping.is_set():
                break
            continue
        transaction += 1
        is_ending = False
        try:
            producer.begin_transaction()
            say("begun", transaction, 2 * sum(len(records) for records in batch.values()))
            for record in (record for records in batch.values() for record in records):
                for partition, value in outcomes(transaction, int(record.value), partitions):
                    producer.send(target, value, partition=partition)
            offsets = {place: OffsetAndMetadata(records[-1].offset + 1, "", -1) for place, records in batch.items()}
            producer.send_offsets_to_transaction(offsets, consumer.group_metadata())
            if is_to_abort(transaction):
                producer.flush(60)
                producer.abort_transaction()
                say("aborted", transaction)
                rewind()
            else:
                is_ending = True
                producer.commit_transaction()
                say("committed", transaction)
        except KafkaError as error:
            try:
                producer.abort_transaction()
                say("aborted", transaction)
                say("note", why(error))
            except KafkaError:
                say("unknown" if is_ending else "aborted", transaction, why(error))
                producer.close(0)
                producer = producer_of()
            rewind()
    consumer.close()


def read(bootstrap, topic, partitions, isolation):
    consumer = KafkaConsumer(
        bootstrap_servers=bootstrap, enable_auto_commit=False, isolation_level=isolation.replace("-", "_")
    )
    places = [TopicPartition(topic, partition) for partition in range(partitions)]
    consumer.assign(places)
    ends = consumer.end_offsets(places)
    consumer.seek_to_beginning(*places)
    while any(consumer.position(place) < ends[place] for place in places):
        for records in consumer.poll(timeout_ms=500).values():
            for record in records:
                say("read", record.partition, record.offset, record.value.decode())
    consumer.close()


main({"produce": produce, "consume": consume, "transact": transact, "read": read})
