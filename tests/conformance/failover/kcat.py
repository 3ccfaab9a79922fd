"""kcat (Debian's: apt-get install kcat) as a driver of failover.py; see driver.py.

kcat tells what became of a record by its partition and offset alone. So there is one kcat for each partition, whose records come back in the order
that they were sent in. It has one transaction in a process, committed at the end of its input and aborted by a signal, and no offsets in it.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time

from driver import BATCH, due, is_to_abort, main, outcomes, say, stopping

DELIVERED = re.compile(r"% Message delivered to partition (\d+) \(offset (-?\d+)\)")
# One with no partitions has no end of line after it, so that there may be several in a line.
REBALANCED = re.compile(r"rebalanced(: incremental)? ?(?:\(memberid [^)]*\): )?(assign|revok)[a-z]*[^\[%]*((?:[^%]*\[\d+\])*)")


class Kcat:
    """One kcat. Each line that it prints is given to `told`, its errors to `told_by_errors`."""

    def __init__(self, *arguments, told=None, told_by_errors):
        self.process = subprocess.Popen(
            ["kcat", *map(str, arguments)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        streams = [(self.process.stdout, told or say), (self.process.stderr, told_by_errors)]
        self.readers = [threading.Thread(target=self.read, args=stream, daemon=True) for stream in streams]
        for reader in self.readers:
            reader.start()

    @staticmethod
    def read(stream, told):
        for line in stream:
            # What kcat says of itself on its errors is kept whole beside.
            told(line.rstrip("\n"))

    def send(self, value):
        self.process.stdin.write(f"{value}\n")
        self.process.stdin.flush()

    def wait(self):
        code = self.process.wait(120)
        for reader in self.readers:
            reader.join()
        return code


def noted(line):
    print(line, file=sys.stderr, flush=True)


def produce(bootstrap, topic, partitions, rate):
    waiting = [[] for _ in range(partitions)]

    def told(partition):
        def line_of(line):
            noted(line)
            delivered = DELIVERED.match(line)
            if delivered:
                say("acked", waiting[partition].pop(0), delivered[1], delivered[2])
            elif line.startswith("% Delivery failed"):
                say("failed", waiting[partition].pop(0), line)

        return line_of

    settings = ["-X", "enable.idempotence=true", "-X", "acks=all", "-X", "linger.ms=5", "-X", "topic.produce.offset.report=true", "-E", "-vvv"]
    producers = [
        Kcat("-P", "-b", bootstrap, "-t", topic, "-p", partition, *settings, told_by_errors=told(partition))
        for partition in range(partitions)
    ]
    for number, wait in due(rate):
        time.sleep(wait)
        partition = number % partitions
        # Before it is sent: its acknowledgement may be here before this thread goes on.
        waiting[partition].append(number)
        producers[partition].send(number)
    for producer in producers:
        producer.process.stdin.close()
    for producer in producers:
        code = producer.wait()
        if code:
            raise RuntimeError(f"a producer ended with {code}")
    left = sum(map(len, waiting))
    if left:
        raise RuntimeError(f"{left} records are neither acknowledged nor failed")


def consume(bootstrap, topic, group):
    held = set()

    def told(line):
        noted(line)
        for change in REBALANCED.finditer(line):
            places = {int(place) for place in re.findall(r"\[(\d+)\]", change[3])}
            if change[2] == "assign":
                held.update(places)
            else:
                held.difference_update(places)
            say("holds", *sorted(held))

    settings = ["auto.offset.reset=earliest", "auto.commit.interval.ms=1000", "session.timeout.ms=10000"]
    if os.environ.get("GROUP_PROTOCOL") == "cooperative":
        settings.append("partition.assignment.strategy=cooperative-sticky")
    flags = [word for setting in settings for word in ("-X", setting)]
    member = Kcat(
        "-b", bootstrap, *flags, "-E", "-u", "-f", "read %p %o %s\\n", "-G", group, topic, told_by_errors=told
    )
    while not stopping.wait(0.2):
        if member.process.poll() is not None:
            raise RuntimeError(f"the member ended with {member.process.returncode}")
    member.process.send_signal(signal.SIGTERM)
    member.wait()


def transact(bootstrap, target, partitions, transactional_id):
    settings = ["-X", f"transactional.id={transactional_id}", "-X", "transaction.timeout.ms=60000", "-m", "60", "-vvv"]
    transaction, number = -1, 0
    while not stopping.is_set():
        transaction += 1
        delivered, committed = threading.Event(), threading.Event()

        def told(line):
            noted(line)
            if DELIVERED.match(line):
                delivered.set()
            if line.startswith("% Transaction successfully committed"):
                committed.set()

        values = [value for given in range(number, number + BATCH) for _, value in outcomes(transaction, given, partitions)]
        say("begun", transaction, len(values))
        producer = Kcat("-P", "-b", bootstrap, "-t", target, *settings, told_by_errors=told)
        outcome = "unknown"
        try:
            for value in values:
                producer.send(value.decode())
            if is_to_abort(transaction):
                # Nothing but another record has kcat look at what has become of those before it, and at the signal; it reads
                # them by the kilobyte.
                more = "\n".join([values[-1].decode()] * 200)
                while not delivered.wait(0.1):
                    producer.send(more)
                outcome = "aborted"
                producer.process.send_signal(signal.SIGTERM)
                while producer.process.poll() is None:
                    producer.send(more)
                    time.sleep(0.1)
        except BrokenPipeError:
            # Its input has not ended, so it was not asked to commit.
            outcome = "aborted"
        if outcome == "unknown":
            producer.process.stdin.close()
        code = producer.wait()
        if committed.is_set():
            outcome = "committed"
        say(outcome, transaction, code)
        if outcome != "aborted":
            # Where that is not known its values may be there, and are not sent again.
            number += BATCH


main({"produce": produce, "consume": consume, "transact": transact})
