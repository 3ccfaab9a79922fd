"""confluent-kafka (librdkafka) as a driver of failover.py; see driver.py."""

import os
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from driver import BATCH, due, is_to_abort, main, outcomes, say, stopping, why


def produce(bootstrap, topic, partitions, rate):
    producer = Producer({"bootstrap.servers": bootstrap, "acks": "all", "enable.idempotence": True, "linger.ms": 5})

    def told(number):
        def report(error, message):
            if error:
                say("failed", number, error)
            else:
                say("acked", number, message.partition(), message.offset())

        return report

    for number, wait in due(rate):
        producer.poll(wait)
        producer.produce(topic, b"%d" % number, partition=number % partitions, on_delivery=told(number))
    left = producer.flush(120)
    if left:
        say("error", f"{left} records are neither acknowledged nor failed after two minutes")


# In it the group has the session's time from the broker.
NEWER = {"group.protocol": "consumer"}


def consumer_of(bootstrap, topic, group, **settings):
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": group,
            "auto.offset.reset": "earliest",
            "auto.commit.interval.ms": 1000,
            **(NEWER if os.environ.get("GROUP_PROTOCOL") == "consumer" else {"session.timeout.ms": 10000}),
            **settings,
        }
    )
    held = set()

    def gets(_consumer, assigned):
        held.update(place.partition for place in assigned)
        say("holds", *sorted(held))

    def loses(_consumer, revoked):
        held.difference_update(place.partition for place in revoked)
        say("holds", *sorted(held))

    consumer.subscribe([topic], on_assign=gets, on_revoke=loses, on_lost=loses)
    return consumer


def consume(bootstrap, topic, group):
    consumer = consumer_of(bootstrap, topic, group)
    while not stopping.is_set():
        message = consumer.poll(0.5)
        if message is None:
            continue
        if message.error():
            say("note", message.error())
        else:
            say("read", message.partition(), message.offset(), message.value().decode())
    consumer.close()


def transact(bootstrap, source, target, partitions, group, transactional_id):
    consumer = consumer_of(
        bootstrap, source, group, **{"enable.auto.commit": False, "isolation.level": "read_committed"}
    )

    def producer_of():
        producer = Producer(
            {"bootstrap.servers": bootstrap, "transactional.id": transactional_id, "transaction.timeout.ms": 60000}
        )
        producer.init_transactions(120)
        return producer

    def rewind():
        for place in consumer.committed(consumer.assignment(), timeout=60):
            consumer.seek(TopicPartition(source, place.partition, max(place.offset, 0)))

    def retried(step):
        # librdkafka says of an error whether the same call may be made again.
        end = time.monotonic() + 120
        while True:
            try:
                return step()
            except KafkaException as error:
                if not error.args[0].retriable() or time.monotonic() > end:
                    raise
                say("note", why(error))
                time.sleep(0.1)

    producer, transaction = producer_of(), -1
    while True:
        batch = [message for message in consumer.consume(BATCH, 0.5) if not message.error()]
        if not batch:
            if stopping.is_set():
                break
            continue
        transaction += 1
        is_ending = False
        try:
            producer.begin_transaction()
            say("begun", transaction, 2 * len(batch))
            for message in batch:
                for partition, value in outcomes(transaction, int(message.value()), partitions):
                    producer.produce(target, value, partition=partition)
            # Not the consumer's positions: what was sought is not among them until something is read there.
            ends = {message.partition(): message.offset() + 1 for message in batch}
            offsets = [TopicPartition(source, partition, end) for partition, end in ends.items()]
            retried(
                lambda: producer.send_offsets_to_transaction(offsets, consumer.consumer_group_metadata(), 60)
            )
            if is_to_abort(transaction):
                producer.flush(60)
                retried(lambda: producer.abort_transaction(60))
                say("aborted", transaction)
                rewind()
            else:
                is_ending = True
                retried(lambda: producer.commit_transaction(60))
                say("committed", transaction)
        except KafkaException as error:
            if error.args[0].txn_requires_abort():
                retried(lambda: producer.abort_transaction(60))
                say("aborted", transaction)
                say("note", why(error))
            else:
                say("unknown" if is_ending else "aborted", transaction, why(error))
                producer = producer_of()
            rewind()
    consumer.close()


def read(bootstrap, topic, partitions, isolation):
    consumer = Consumer(
        {
            "bootstrap.servers": bootstrap,
            "group.id": "nobody",
            "enable.auto.commit": False,
            "isolation.level": isolation.replace("-", "_"),
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.assign([TopicPartition(topic, partition, 0) for partition in range(partitions)])
    at_end = set()
    while len(at_end) < partitions:
        message = consumer.poll(1)
        if message is None:
            continue
        if message.error():
            # The only event that is no record and no failure.
            if message.error().code() != -191:
                raise KafkaException(message.error())
            at_end.add(message.partition())
        else:
            say("read", message.partition(), message.offset(), message.value().decode())
    consumer.close()


main({"produce": produce, "consume": consume, "transact": transact, "read": read})
