"""Consume, transform, produce in transactions, with librdkafka as confluent-kafka gives it to Python. Run by
tests/transactions.rs.

usage: transactions_confluent.py BOOTSTRAP

Says "kill the coordinator" or "kill a leader" on its standard output when that is to happen; a line comes on its standard
input when it has, and another when the node is back. Ends with 0 when everything was as it has to be: each record of the
one topic is in the other exactly once, for a reader of committed records.
"""

import faulthandler
import sys
import threading
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

PATIENCE = 120
SOURCE, SINK = "income", "outcome"
PARTITIONS = 3
RECORDS = 1200
BATCH = 20
(BOOTSTRAP,) = sys.argv[1:]
begin = time.monotonic()
# Whatever hangs is shown.
faulthandler.dump_traceback_later(PATIENCE + 15, exit=True)


def say(*words):
    print(f"{time.monotonic() - begin:7.2f}", *words, flush=True, file=sys.stderr)


def left():
    seconds = PATIENCE - (time.monotonic() - begin)
    if seconds <= 0:
        sys.exit(f"not within {PATIENCE} s; {carried} of {RECORDS} carried over, {aborts} transactions aborted")
    return seconds


def new_producer():
    """Whoever had the id is fenced, and its transaction aborted."""
    producer = Producer(
        {
            "bootstrap.servers": BOOTSTRAP,
            "transactional.id": "carrier",
            "transaction.timeout.ms": 30000,
        }
    )
    producer.init_transactions(left())
    return producer


def retry(call):
    """Calls until it succeeds; raises what cannot be tried again."""
    while True:
        try:
            return call(left())
        except KafkaException as error:
            cause = error.args[0]
            if not cause.retriable():
                raise
            say("again after:", cause.str())
            time.sleep(0.05)


def disturb():
    """Has nodes killed while records are carried over."""
    for share, order in enumerate(["kill the coordinator", "kill a leader"] * 2, start=1):
        while carried < RECORDS * share / 5:
            time.sleep(0.02)
            left()
        print(order, flush=True)
        say(order, sys.stdin.readline().strip())
        say(sys.stdin.readline().strip())
    disturbed.set()


carried = 0
aborts = 0
disturbed = threading.Event()
admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
topics = [NewTopic(topic, PARTITIONS, 3) for topic in (SOURCE, SINK)]
for future in admin.create_topics(topics).values():
    future.result(left())

source = Producer({"bootstrap.servers": BOOTSTRAP, "acks": "all", "enable.idempotence": True})
for number in range(RECORDS):
    source.produce(SOURCE, key=str(number), value=str(number))
assert source.flush(left()) == 0



def new_consumer():
    consumer = Consumer(
        {
            "bootstrap.servers": BOOTSTRAP,
            "group.id": "carriers",
            "auto.offset.reset": "earliest",
            "enable.auto.commit": False,
            "isolation.level": "read_committed",
            "session.timeout.ms": 10000,
        }
    )
    consumer.subscribe([SOURCE])
    return consumer


consumer = new_consumer()
producer = new_producer()
threading.Thread(target=disturb, daemon=True).start()


def positions(messages):
    """The offsets after these."""
    last = {}
    for message in messages:
        last[message.partition()] = max(last.get(message.partition(), -1), message.offset())
    return [TopicPartition(SOURCE, partition, offset + 1) for partition, offset in last.items()]


def rewind():
    """Back to what is committed: what was read since is read again. By another consumer, because a seek waits without a bound
    for a partition whose leader has just died."""
    global consumer
    consumer.close()
    consumer = new_consumer()


while carried < RECORDS or not disturbed.is_set():
    left()
    messages = [message for message in consumer.consume(BATCH, 0.5) if not message.error()]
    if not messages:
        if carried >= RECORDS:
            time.sleep(0.05)
        continue
    try:
        producer.begin_transaction()
        for message in messages:
            producer.produce(SINK, key=message.key(), value=message.value(), partition=message.partition())
        retry(
            lambda patience: producer.send_offsets_to_transaction(
                positions(messages), consumer.consumer_group_metadata(), patience
            )
        )
        # Now and then a transaction is given up, so that there is something that must not be read.
        if carried and aborts * 10 < carried // BATCH:
            aborts += 1
            retry(lambda patience: producer.abort_transaction(patience))
            rewind()
            continue
        retry(lambda patience: producer.commit_transaction(patience))
        carried += len(messages)
    except KafkaException as error:
        cause = error.args[0]
        say("given up:", cause.str())
        aborts += 1
        if cause.txn_requires_abort():
            retry(lambda patience: producer.abort_transaction(patience))
        else:
            producer = new_producer()
        rewind()

reader = Consumer(
    {
        "bootstrap.servers": BOOTSTRAP,
        "group.id": "readers",
        "auto.offset.reset": "earliest",
        "isolation.level": "read_committed",
        "enable.partition.eof": False,
    }
)
reader.subscribe([SINK])
read = []
quiet_since = time.monotonic()
while len(read) < RECORDS or time.monotonic() - quiet_since < 2:
    left()
    message = reader.poll(0.2)
    if message is None or message.error():
        continue
    read.append(int(message.value()))
    quiet_since = time.monotonic()
reader.close()
consumer.close()
assert sorted(read) == list(range(RECORDS)), f"{len(read)} read, {len(set(read))} different"
assert aborts, "nothing was aborted"
say(f"{RECORDS} records carried over, {aborts} transactions aborted")
