"""A consumer group of librdkafka's, as confluent-kafka gives it to Python. Run by tests/groups.rs.

usage: groups_confluent.py BOOTSTRAP STRATEGY

STRATEGY is an assignor of the client's, or "newer:" and one of the server's, for the newer group protocol (KIP-848).

Says "coordinator N" on its standard output when node N is to be killed, and goes on when a line comes on its standard
input. Ends with 0 when everything was as it has to be.
"""

import sys
import threading
import time

from confluent_kafka import Consumer, Producer
from confluent_kafka.admin import AdminClient, NewTopic

PATIENCE = 60
TOPIC = "shipments"
PARTITIONS = 6
BOOTSTRAP, STRATEGY = sys.argv[1:]
GROUP = f"readers-{STRATEGY.replace(':', '-')}"
NEWER = STRATEGY.startswith("newer:")
if NEWER:
    PROTOCOL = {"group.protocol": "consumer", "group.remote.assignor": STRATEGY.removeprefix("newer:")}
else:
    PROTOCOL = {"session.timeout.ms": 6000, "partition.assignment.strategy": STRATEGY}


class Member(threading.Thread):
    """One consumer; what it read and what it is given."""

    def __init__(self, name):
        super().__init__(daemon=True, name=name)
        self.read = []
        self.given = 0
        self.ends = False
        self.errors = []
        self.start()

    def run(self):
        consumer = Consumer(
            {
                "bootstrap.servers": BOOTSTRAP,
                "group.id": GROUP,
                "auto.offset.reset": "earliest",
                "auto.commit.interval.ms": 200,
                **PROTOCOL,
            }
        )
        consumer.subscribe([TOPIC])
        while not self.ends:
            message = consumer.poll(0.2)
            self.given = len(consumer.assignment())
            if message is None:
                continue
            if message.error():
                self.errors.append(str(message.error()))
            else:
                self.read.append(message.value().decode())
        consumer.close()

    def end(self):
        self.ends = True
        self.join(PATIENCE)
        assert not self.is_alive(), f"{self.name} does not close"


def until(what, holds):
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > PATIENCE:
            sys.exit(f"{what}: not within {PATIENCE} s; {state()}")
        time.sleep(0.05)
    print("seen:", what, flush=True)


def state():
    known = [f"{m.name}: given {m.given}, read {len(m.read)}, errors {m.errors[-3:]}" for m in members]
    return "; ".join(known)


def produce(tag):
    """A hundred records; every one of them is acknowledged."""
    producer = Producer({"bootstrap.servers": BOOTSTRAP, "acks": "all"})
    failed = []
    values = [f"{tag}-{n}" for n in range(100)]
    for value in values:
        producer.produce(TOPIC, key=value, value=value, on_delivery=lambda e, _: e and failed.append(str(e)))
    left = producer.flush(PATIENCE)
    assert not failed and not left, f"{tag}: {left} not delivered, failed: {failed[:3]}"
    return set(values)


def all_read(values):
    return lambda: values <= {value for member in members for value in member.read}


members = []
admin = AdminClient({"bootstrap.servers": BOOTSTRAP})
admin.create_topics([NewTopic(TOPIC, PARTITIONS, 3)])[TOPIC].result(PATIENCE)

first = Member("first")
members.append(first)
until("one member has every partition", lambda: first.given == PARTITIONS)
before = produce("before")
until("it reads what was produced", all_read(before))

second = Member("second")
members.append(second)
until("two members share", lambda: (first.given, second.given) == (PARTITIONS // 2,) * 2)
shared = produce("shared")
until("they read together", all_read(shared))

found = admin.describe_consumer_groups([GROUP])[GROUP].result(PATIENCE)
assert len(found.members) == 2, found.members
assert GROUP in [group.group_id for group in admin.list_consumer_groups().result(PATIENCE).valid]

print(f"coordinator {found.coordinator.id}", flush=True)
sys.stdin.readline()
after = produce("after")
until("they read on without their coordinator", all_read(after))

first.end()
until("the one that stays takes over", lambda: second.given == PARTITIONS)
second.end()
third = Member("third")
members[:] = [third]
late = produce("late")
until("a third one reads on", all_read(late))
again = set(third.read) - late
assert not again, f"{len(again)} records that were committed are read again: {sorted(again)[:5]}"
third.end()
admin.delete_consumer_groups([GROUP])[GROUP].result(PATIENCE)
