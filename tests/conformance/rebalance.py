"""A group of 8 members over 24 partitions: how long it takes to settle, and what is left of it when its coordinator is killed.

usage: rebalance.py [MEMBERS]       in cluster.sh, with a Python that has confluent-kafka; MEMBERS is 8

For each of the assignors range and cooperative-sticky, and for the newer group protocol, with librdkafka's own defaults: members
start together, then one more comes, then one leaves in good order. Settled means that every partition has one member and no member
has two more than another; the time is taken from the start, the arrival, the departure. Then every offset is committed, the node that
coordinates the group is killed (kill -9), and its successor is asked until it answers: each offset must be there. At last
records are added that nobody reads, and `quorate group describe` must show just them as the group's lag.

Prints a line for each of these; ends with 1 where an offset was lost or the lag was wrong, or something took more than two minutes.
"""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic

CLUSTER = pathlib.Path(os.environ["CLUSTER_DIR"]).resolve()
BOOTSTRAP = os.environ["BOOTSTRAP"]
QUORATE = os.environ.get("QUORATE", "target/debug/quorate")
MEMBERS = int(sys.argv[1]) if len(sys.argv) > 1 else 8
PARTITIONS, RECORDS, ADDED = 24, 100, 10
WITHIN = 120


class Member(threading.Thread):
    """One consumer that keeps polling."""

    def __init__(self, topic, settings):
        super().__init__(daemon=True)
        self.consumer = Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": topic, "auto.offset.reset": "earliest", "enable.auto.commit": False, "log_level": 2, **settings})
        self.topic, self.leaves, self.commits, self.assigned = topic, threading.Event(), threading.Event(), frozenset()
        self.start()

    def run(self):
        self.consumer.subscribe([self.topic])
        while not self.leaves.is_set():
            self.consumer.poll(0.02)
            self.assigned = frozenset(place.partition for place in self.consumer.assignment())
            if self.commits.is_set():
                # By the thread that polls: librdkafka's call does not return to another one while this one takes what comes.
                ends = [TopicPartition(self.topic, partition, RECORDS) for partition in self.assigned]
                self.consumer.commit(offsets=ends, asynchronous=False)
                self.commits.clear()
        self.consumer.close()
        self.assigned = frozenset()

    def leave(self):
        self.leaves.set()


def wait(what, is_so):
    """Seconds until it is so."""
    begun = time.monotonic()
    while not is_so():
        if time.monotonic() - begun > WITHIN:
            sys.exit(f"{what}: not within {WITHIN} s")
        time.sleep(0.01)
    return time.monotonic() - begun


def is_settled(members):
    shares = [member.assigned for member in members]
    sizes = [len(share) for share in shares]
    return sum(sizes) == PARTITIONS == len(frozenset().union(*shares)) and max(sizes) - min(sizes) <= 1


def lag_of(group):
    command = [QUORATE, "--certs-dir", str(CLUSTER / "certs-1"), "-b", os.environ["CLUSTER_QUIC"], "--output", "json", "group", "describe", group]
    answer = subprocess.run(command, capture_output=True, timeout=60, check=True)
    lines = [json.loads(line) for line in answer.stdout.splitlines()]
    return sum(place["lag"] for group in lines for place in group["partitions"])


def produce(topic, each):
    producer = Producer({"bootstrap.servers": BOOTSTRAP, "acks": "all", "log_level": 2})
    for partition in range(PARTITIONS):
        for number in range(each):
            producer.produce(topic, f"{partition}-{number}", partition=partition)
    if producer.flush(WITHIN):
        sys.exit(f"{topic}: not everything was acknowledged")


def committed(group):
    """The group's offsets, or None while nobody answers for it."""
    asking = Consumer({"bootstrap.servers": BOOTSTRAP, "group.id": group, "log_level": 2})
    try:
        places = asking.committed([TopicPartition(group, partition) for partition in range(PARTITIONS)], timeout=2)
        return {place.partition: place.offset for place in places if place.error is None}
    except KafkaException:
        return None
    finally:
        asking.close()


def run(name, settings):
    topic, admin = f"rebalance-{name}", AdminClient({"bootstrap.servers": BOOTSTRAP, "log_level": 2})
    admin.create_topics([NewTopic(topic, PARTITIONS, 3)])[topic].result()
    produce(topic, RECORDS)
    # The first group of a cluster waits for the topic of offsets; that is not its rebalance.
    wait(f"{name}: a coordinator", lambda: committed(topic) is not None)
    members = [Member(topic, settings) for _ in range(MEMBERS)]
    joined = wait(f"{name}: {MEMBERS} members", lambda: is_settled(members))
    members.append(Member(topic, settings))
    arrived = wait(f"{name}: one more", lambda: is_settled(members))
    members.pop(0).leave()
    left = wait(f"{name}: one less", lambda: is_settled(members))
    print(f"{name}: {MEMBERS} members settled after {joined:.2f} s, with one more after {arrived:.2f} s, with one less after {left:.2f} s", flush=True)

    wanted = {partition: RECORDS for partition in range(PARTITIONS)}
    for member in members:
        member.commits.set()
    wait(f"{name}: commits", lambda: not any(member.commits.is_set() for member in members))
    coordinator = admin.describe_consumer_groups([topic])[topic].result().coordinator.id
    os.kill(int((CLUSTER / f"node-{coordinator}.pid").read_text()), signal.SIGKILL)
    answers = []
    back = wait(f"{name}: offsets", lambda: answers.append(committed(topic)) or answers[-1] is not None)
    is_whole = answers[-1] == wanted
    print(f"{name}: node {coordinator}, its coordinator, killed: offsets told after {back:.2f} s, {'all there' if is_whole else f'LOST: {answers[-1]}'}", flush=True)
    for member in members:
        member.leave()
    for member in members:
        member.join(WITHIN)
    (CLUSTER / f"node-{coordinator}.restart").touch()
    produce(topic, ADDED)
    lag = lag_of(topic)
    is_right = lag == PARTITIONS * ADDED
    print(f"{name}: lag {lag} of {PARTITIONS * ADDED}{'' if is_right else ': WRONG'}", flush=True)
    return is_whole and is_right


ended = [
    run("range", {"partition.assignment.strategy": "range"}),
    run("cooperative-sticky", {"partition.assignment.strategy": "cooperative-sticky"}),
    run("consumer", {"group.protocol": "consumer"}),
]
sys.exit(not all(ended))
