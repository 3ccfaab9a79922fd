"""What public clients make of nodes that are killed in the middle of their work, on the three nodes of cluster.sh.

usage: cluster.sh DIR python3 failover.py KEEP CLIENT…      CLIENT: confluent-kafka, kafka-python, aiokafka, java, franz-go,
                                                            kcat;
                                                            confluent-kafka/consumer and java/consumer are members of the
                                                            newer group protocol (KIP-848), those of kcat/cooperative
                                                            rebalance step by step
                                                            KEEP is a directory for what is built and fetched

In the first part a client produces numbered values at a steady rate, with idempotence, and two members of a group read them. The
leader of a partition is killed (kill -9) and started again, then the group's coordinator. In the second a client reads those values in
transactions, each with its offsets, and writes them to other partitions, aborting each fourth one; a leader of the target, the
group's coordinator and the transactions' coordinator are killed. (kcat has no offsets in its transactions: it writes alone.) An independent client then reads everything from the start, and this checks it against what the
clients were told. The drivers of the clients are in failover/, what they print is at the head of failover/driver.py.

Prints one line for each thing tried: "ok" or "FAILED", and why. Ends with 1 where anything failed. What each driver printed stays in
the cluster's directory. PYTHON is the Python that has the clients (KEEP/python/bin/python).
"""

import collections
import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

HERE = pathlib.Path(__file__).resolve().parent
KEEP = pathlib.Path(sys.argv[1]).resolve()
CLUSTER = pathlib.Path(os.environ["CLUSTER_DIR"]).resolve()
BOOTSTRAP = os.environ["BOOTSTRAP"]
QUORATE = os.environ.get("QUORATE", "target/debug/quorate")
PYTHON = os.environ.get("PYTHON", str(KEEP / "python/bin/python"))
PARTITIONS = 4
RATE = 100
# How long anything may take on a slow machine before it counts as never.
LONG = 120
JAVA = "4.1.0"
failed = False


def python(name):
    return lambda: [PYTHON, str(HERE / "failover" / name)]


def java():
    jars, classes = KEEP / f"failover-jars-{JAVA}", KEEP / "failover-classes"
    if not jars.exists():
        pom = HERE / "failover" / "pom.xml"
        asked = ["mvn", "-q", "-B", "-f", str(pom), f"-Dkafka.version={JAVA}", "dependency:copy-dependencies"]
        subprocess.run([*asked, f"-DoutputDirectory={jars}"], check=True)
    source = HERE / "failover" / "Driver.java"
    subprocess.run(["javac", "-cp", f"{jars}/*", "-d", str(classes), str(source)], check=True)
    quiet = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
    return ["java", "-Xmx256m", "-XX:TieredStopAtLevel=1", quiet, "-cp", f"{jars}/*:{classes}", "Driver"]


def go():
    place = KEEP / "failover-go"
    place.mkdir(parents=True, exist_ok=True)
    (place / "main.go").write_text((HERE / "failover" / "driver.go").read_text())
    if not (place / "go.mod").exists():
        subprocess.run(["go", "mod", "init", "driver"], cwd=place, check=True, stderr=subprocess.DEVNULL)
        subprocess.run(["go", "get", "github.com/twmb/franz-go/pkg/kgo@v1.20.2"], cwd=place, check=True, stderr=subprocess.DEVNULL)
    subprocess.run(["go", "build", "-o", "driver", "."], cwd=place, check=True)
    return [str(place / "driver")]


# How each driver is called, and who reads its topics afterwards: never the client itself.
CLIENTS = {
    "confluent-kafka": (python("confluent.py"), "kafka_python.py"),
    "kafka-python": (python("kafka_python.py"), "confluent.py"),
    "aiokafka": (python("aio.py"), "confluent.py"),
    "java": (java, "confluent.py"),
    "franz-go": (go, "confluent.py"),
    "kcat": (python("kcat.py"), "kafka_python.py"),
}


class Wrong(Exception):
    """What was tried did not hold."""


def tried(what, work):
    global failed
    begun = time.monotonic()
    try:
        said = work()
        print(f"{what}: ok{': ' + said if said else ''} ({time.monotonic() - begun:.0f} s)", flush=True)
    except (Wrong, subprocess.SubprocessError) as error:
        failed = True
        print(f"{what}: FAILED: {error}"[:600], flush=True)


def wait_until(what, is_so, within=LONG):
    end = time.monotonic() + within
    while not is_so():
        if time.monotonic() > end:
            raise Wrong(f"not within {within} s: {what() if callable(what) else what}")
        time.sleep(0.2)


def ask(*arguments):
    """What one of quorate's commands answers as JSON, or None while the cluster cannot answer."""
    command = [QUORATE, "--certs-dir", str(CLUSTER / "certs-1"), "-b", os.environ["CLUSTER_QUIC"]]
    answer = subprocess.run([*command, "--output", "json", "--timeout", "10s", *arguments], capture_output=True, timeout=60)
    lines = answer.stdout.decode().splitlines()
    return json.loads(lines[0]) if lines else None


def partitions_of(topic):
    return (ask("topic", "describe", topic) or {}).get("partitions", [])


def leader_of(topic, partition):
    leaders = [place["leader"] for place in partitions_of(topic) if place["partition"] == partition]
    return leaders[0] if leaders else None


def internal_partition(name):
    """Where a group or a transactional id lives among the 16 partitions of its topic: Java's hash of its name."""
    hashed = 0
    for letter in name:
        hashed = (31 * hashed + ord(letter)) & 0xFFFFFFFF
    return (hashed & 0x7FFFFFFF) % 16


class Driver:
    """A client at work: what it says is kept in a file, and counted by the first word."""

    def __init__(self, name, command, *arguments):
        self.name, self.lines, self.counts = name, [], collections.Counter()
        self.log = open(CLUSTER / f"{name}.out", "w", encoding="utf-8", buffering=1)
        self.process = subprocess.Popen(
            [*command, *map(str, arguments)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(CLUSTER / f"{name}.err", "wb"),
            text=True,
            env={**os.environ, "GROUP_PROTOCOL": protocol},
        )
        self.reader = threading.Thread(target=self.read, daemon=True)
        self.reader.start()

    def read(self):
        for line in self.process.stdout:
            self.log.write(line)
            words = line.split()
            self.lines.append(words)
            self.counts[words[0]] += 1

    def said(self, word):
        return [words[1:] for words in list(self.lines) if words[0] == word]

    def check(self):
        if self.process.poll() is not None:
            raise Wrong(f"{self.name} has ended in the middle: {self.last()}; see {CLUSTER / self.name}.err")

    def last(self):
        return " ".join((self.lines or [["it said nothing"]])[-1])

    def end(self):
        """Has it end in good order."""
        if not self.process.stdin.closed:
            self.process.stdin.close()
        self.wait()

    def wait(self):
        try:
            self.process.wait(LONG)
        except subprocess.TimeoutExpired:
            raise Wrong(f"{self.name} does not end within {LONG} s; the last it said: {self.last()}") from None
        self.reader.join()
        if self.process.returncode or self.lines[-1:] != [["end"]]:
            raise Wrong(f"{self.name} ended with {self.process.returncode}: {self.last()}; see {CLUSTER / self.name}.err")

    def kill(self):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()


def goes_on(drivers, word, by):
    """Each driver says the word so many times more."""
    wanted = {driver: driver.counts[word] + by for driver in drivers}

    def has_gone_on():
        for driver in wanted:
            driver.check()
        return all(driver.counts[word] >= count for driver, count in wanted.items())

    state = lambda: f"{word} by " + ", ".join(f"{driver.name}: {driver.counts[word]} of {count}" for driver, count in wanted.items())
    wait_until(state, has_gone_on)


def all_in_sync(*topics):
    def is_so():
        places = [place for topic in topics for place in partitions_of(topic)]
        return places and all(place["leader"] and len(place["isr"]) == len(place["replicas"]) for place in places)

    wait_until(f"every replica of {', '.join(topics)} is in sync", is_so)


def make(*topics):
    for topic in topics:
        ask("topic", "create", topic, "-p", str(PARTITIONS))
    all_in_sync(*topics)


def kill_and_restart(topic, partition, drivers, word, by):
    """kill -9 of the node that leads there; the drivers go on without it; it comes back, and they go on again."""
    node = leader_of(topic, partition)
    if not node:
        raise Wrong(f"nobody leads {topic}-{partition}")
    process = CLUSTER / f"node-{node}.pid"
    os.kill(int(process.read_text()), signal.SIGKILL)
    begun = time.monotonic()
    try:
        wait_until(f"another leads {topic}-{partition}", lambda: leader_of(topic, partition) not in (None, node))
        goes_on(drivers, word, by)
        away = time.monotonic() - begun
    finally:
        # Also for what is tried next.
        (CLUSTER / f"node-{node}.restart").touch()
        wait_until(f"node {node} runs again", process.exists)
    all_in_sync(topic)
    goes_on(drivers, word, by)
    return f"node {node}; {by} more {word} after {away:.1f} s"


def everything_in(reader, name, topic, isolation):
    """Every record of the topic, by partition, in its order: (offset, value)."""
    driver = Driver(name, [PYTHON, str(HERE / "failover" / reader)], "read", BOOTSTRAP, topic, PARTITIONS, isolation)
    try:
        driver.wait()
    finally:
        driver.kill()
    records = collections.defaultdict(list)
    for partition, offset, value in driver.said("read"):
        records[int(partition)].append((int(offset), value))
    return records


def lag(group):
    """How far the group is from the log's end, or None while that cannot be told."""
    described = ask("group", "describe", group)
    if not described or len(described["partitions"]) < PARTITIONS:
        return None
    lags = [place["lag"] for place in described["partitions"] if place["committed"] is not None]
    return sum(lags) if len(lags) == PARTITIONS else None


def check_produced(producer, records):
    acked = {int(number): (int(partition), int(offset)) for number, partition, offset in producer.said("acked")}
    if producer.counts["failed"]:
        raise Wrong(f"{producer.counts['failed']} were given up, first {' '.join(producer.said('failed')[0])}")
    found = collections.Counter(value for places in records.values() for _, value in places)
    twice = [value for value, count in found.items() if count > 1]
    lost = [number for number in acked if str(number) not in found]
    if lost or twice:
        raise Wrong(f"of {len(acked)} acknowledged {len(lost)} lost {sorted(lost)[:5]}, {len(twice)} twice {twice[:5]}")
    for partition, places in records.items():
        numbers = [int(value) for _, value in places]
        if numbers != sorted(numbers):
            raise Wrong(f"the values of partition {partition} are out of order")
    where = {int(value): (partition, offset) for partition, places in records.items() for offset, value in places}
    elsewhere = [number for number, place in acked.items() if where[number] != place and place[1] >= 0]
    if elsewhere:
        first = elsewhere[0]
        raise Wrong(f"{len(elsewhere)} are not where they were acknowledged: {first} at {where[first]}, not {acked[first]}")
    unknown = sum(1 for _, offset in acked.values() if offset < 0)
    return f"{len(acked)} acknowledged{f', {unknown} of them without their offset' if unknown else ''}"


def check_consumed(members, records):
    wanted = {(partition, offset, value) for partition, places in records.items() for offset, value in places}
    read = collections.Counter()
    for member in members:
        read.update((int(partition), int(offset), value) for partition, offset, value in member.said("read"))
    left_out, strange = wanted - set(read), set(read) - wanted
    if left_out or strange:
        raise Wrong(f"{len(left_out)} records were left out, {len(strange)} read that are not in the log: {list(left_out or strange)[:3]}")
    again = sum(count - 1 for count in read.values())
    return f"{len(wanted)} records, {again} of them again"


def first_part(client, command, reader, run):
    topic, group = f"in-{run}", f"group-{run}"
    tried(f"{client}: a topic is made", lambda: make(topic))
    members = [Driver(f"{run}-member-{n}", command, "consume", BOOTSTRAP, topic, group) for n in (1, 2)]
    producer = Driver(f"{run}-producer", command, "produce", BOOTSTRAP, topic, PARTITIONS, RATE)
    everyone = [producer, *members]

    def begins():
        goes_on([producer], "acked", 3 * RATE)
        goes_on(members, "read", RATE)

    def kill(topic, partition):
        # In one wait, so that a member that reads nothing is found as well.
        def work():
            said = kill_and_restart(topic, partition, [producer], "acked", 3 * RATE)
            goes_on(members, "read", RATE)
            return said

        return work

    def ends():
        producer.end()
        wait_until(lambda: f"the group reads to the log's end; its lag is {lag(group)}", lambda: lag(group) == 0)
        held = [driver.said("holds")[-1] for driver in members]
        for member in members:
            member.check()
            member.end()
        if sorted(sum(held, [])) != [str(partition) for partition in range(PARTITIONS)] or not all(held):
            raise Wrong(f"the members hold {held}")
        return f"members hold {' and '.join(','.join(places) for places in held)}"

    def offsets():
        described = ask("group", "describe", group) or {"partitions": []}
        behind = [place for place in described["partitions"] if place["committed"] != place["log_end"]]
        if behind or len(described["partitions"]) != PARTITIONS:
            raise Wrong(f"{described}")

    try:
        tried(f"{client}: produce with idempotence, read in a group of two", begins)
        tried(f"{client}: a partition's leader is killed and comes back", kill(topic, 0))
        tried(f"{client}: the group's coordinator is killed and comes back", kill("__consumer_offsets", internal_partition(group)))
        tried(f"{client}: they end in good order, and share the partitions", ends)
    finally:
        for driver in everyone:
            driver.kill()
    records = {}

    def log():
        records.update(everything_in(reader, f"{run}-log", topic, "read-committed"))
        return check_produced(producer, records)

    tried(f"{client}: each acknowledged value is in the log once, in order", log)
    tried(f"{client}: the members read everything at least once", lambda: check_consumed(members, records))
    tried(f"{client}: the group's offsets are at the log's end", offsets)


def check_transactions(driver, source, committed, everything):
    """The committed transactions are there whole, the aborted ones not at all, and each value of the source just once."""
    begun = {int(transaction): int(count) for transaction, count in driver.said("begun")}
    outcome = {int(words[0]): word for word in ("committed", "aborted", "unknown") for words in driver.said(word)}
    written, by_value = collections.Counter(), collections.Counter()
    for places in committed.values():
        for _, value in places:
            transaction, number, copy = value.split("/")
            written[int(transaction)] += 1
            by_value[(int(number), copy)] += 1
    for transaction, count in begun.items():
        end = outcome.get(transaction, "unknown")
        wanted = {"committed": {count}, "aborted": {0}, "unknown": {0, count}}[end]
        if written[transaction] not in wanted:
            raise Wrong(f"transaction {transaction} ({end}) shows {written[transaction]} of its {count} values")
    numbers = {int(value) for places in source.values() for _, value in places}
    wanted = {(number, copy) for number in numbers for copy in "01"}
    missing, twice = wanted - set(by_value), [value for value, count in by_value.items() if count > 1]
    if missing or twice:
        raise Wrong(f"of {len(wanted)} values {len(missing)} missing {sorted(missing)[:4]}, {len(twice)} twice {twice[:4]}")
    hidden = sum(map(len, everything.values())) - sum(written.values())
    counted = collections.Counter(outcome.values())
    if not hidden or not counted["aborted"]:
        raise Wrong("nothing was aborted, so this has tried nothing")
    told = ", ".join(f"{count} {word}" for word, count in sorted(counted.items()))
    return f"{told}; {sum(written.values())} values shown, {hidden} hidden"


def kill_mere_leader(topic, worker, *coordinators):
    """Of a partition whose leader is no coordinator: of three nodes two can be that, and the four leaders are on all three."""
    leaders = {leader_of(*coordinator) for coordinator in coordinators}
    mere = [place["partition"] for place in partitions_of(topic) if place["leader"] not in leaders]
    return kill_and_restart(topic, mere[0], [worker], "committed", 20)


def second_part(client, command, reader, run):
    source, target = f"source-{run}", f"target-{run}"
    group, transactional_id = f"etl-{run}", f"id-{run}"
    tried(f"{client}: two topics are made", lambda: make(source, target))
    producer = Driver(f"{run}-source", command, "produce", BOOTSTRAP, source, PARTITIONS, RATE // 2)
    worker = Driver(f"{run}-worker", command, "transact", BOOTSTRAP, source, target, PARTITIONS, group, transactional_id)

    def ends():
        producer.end()
        wait_until(lambda: f"all is committed; the group's lag is {lag(group)}; last: {worker.last()}", lambda: worker.check() or lag(group) == 0)
        worker.end()
        return f"{worker.counts['note']} errors that it got over" if worker.counts["note"] else None

    def exactly_once():
        sourced = everything_in(reader, f"{run}-source-log", source, "read-committed")
        committed = everything_in(reader, f"{run}-committed", target, "read-committed")
        everything = everything_in(reader, f"{run}-everything", target, "read-uncommitted")
        check_produced(producer, sourced)
        return check_transactions(worker, sourced, committed, everything)

    home = internal_partition(transactional_id)

    def kill_leader():
        return kill_mere_leader(target, worker, ("__transaction_state", home), ("__consumer_offsets", internal_partition(group)))

    def kill_group_coordinator():
        return kill_and_restart("__consumer_offsets", internal_partition(group), [worker], "committed", 20)

    def kill_coordinator():
        return kill_and_restart("__transaction_state", home, [worker], "committed", 20)

    try:
        tried(f"{client}: transactions with the offsets that they have read", lambda: goes_on([worker], "committed", 20))
        tried(f"{client}: a leader that they write to is killed and comes back", kill_leader)
        tried(f"{client}: the coordinator of the group that they read in is killed and comes back", kill_group_coordinator)
        # Last, because one of the clients does not outlive it.
        tried(f"{client}: the transactions' coordinator is killed and comes back", kill_coordinator)
        tried(f"{client}: they end in good order, everything committed", ends)
    finally:
        for driver in (producer, worker):
            driver.kill()
    tried(f"{client}: a reader of what is committed sees each value once, and nothing aborted", exactly_once)


def transactions_alone(client, command, reader, run):
    """The second part of a client whose transactions have no offsets: it writes numbers of its own."""
    target, transactional_id = f"target-{run}", f"id-{run}"
    tried(f"{client}: a topic is made", lambda: make(target))
    worker = Driver(f"{run}-worker", command, "transact", BOOTSTRAP, target, PARTITIONS, transactional_id)
    home = ("__transaction_state", internal_partition(transactional_id))

    def exactly_once():
        committed = everything_in(reader, f"{run}-committed", target, "read-committed")
        everything = everything_in(reader, f"{run}-everything", target, "read-uncommitted")
        # Each transaction must be whole, so what shows of them is all that they had.
        shown = {partition: [(offset, value.split("/")[1]) for offset, value in places] for partition, places in committed.items()}
        return check_transactions(worker, shown, committed, everything)

    try:
        tried(f"{client}: transactions", lambda: goes_on([worker], "committed", 20))
        tried(f"{client}: a leader that they write to is killed and comes back", lambda: kill_mere_leader(target, worker, home))
        tried(f"{client}: the transactions' coordinator is killed and comes back", lambda: kill_and_restart(*home, [worker], "committed", 20))
        tried(f"{client}: they end in good order", worker.end)
    finally:
        worker.kill()
    tried(f"{client}: a reader of what is committed sees each value once, and nothing aborted", exactly_once)


for client in sys.argv[2:]:
    # The drivers find it in their environment.
    name, _, protocol = client.partition("/")
    prepare, reader = CLIENTS[name]
    try:
        command = prepare()
    except (OSError, subprocess.SubprocessError) as error:
        failed = True
        print(f"{client}: its driver is fetched and built: FAILED: {error}"[:600], flush=True)
        continue
    run = f"{client.replace('/', '-')}-{int(time.time())}"
    first_part(client, command, reader, run)
    (transactions_alone if name == "kcat" else second_part)(client, command, reader, run)
sys.exit(failed)
