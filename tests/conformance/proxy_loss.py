"""The same librdkafka producer on a bad link, over TCP to the Kafka listeners and through `quorate proxy`, in turns.

usage: PYTHON proxy_loss.py DIR [--loss 5%] [--delay 40ms] [--link-rate RATE] [--runs 3] [--rate 100] [--seconds 20]
                            [--partitions 3] [--seed N] [--set NAME=VALUE]…

The producer is confluent-kafka as it is: idempotent, acks=all, 1 KiB records that cannot be compressed, librdkafka's own defaults but
for what --set changes in all arms. It is alone on host 1 of `quorate bench lab`; the three nodes are together on host 2, and talk to
each other there. So the one link that is bad is the client's: each packet is delayed by --delay on each way (the round trip takes twice
that) and lost with --loss, below the kernel, whoever sent it.

The arms, each as often as --runs says, one after the other, and then all of them again:

    tcp:cubic, tcp:bbr    to the listeners, in plain text; the congestion control (of both kernels) is that of the hosts' route. An arm
                          whose congestion control this kernel does not have is left out
    proxy                 to `quorate proxy` on host 1, by loopback, and over the link in QUIC under mutual TLS

In each turn it sends --rate records a second for --seconds, each at its time whatever became of those before, and takes each record's
latency from the time at which it was to be sent to its delivery report (so p50 and p99 are those of an open loop). Then it sends as
fast as it can for as long, with 16 MiB in its queue at most, and counts what was acknowledged in that time. Afterwards the topic is read
on host 2: every acknowledged record must be there once.

Prints a table, and a line of JSON for each turn. Ends with 1 where a record was lost, doubled or not acknowledged. DIR is new or empty
and keeps the logs. QUORATE is the program (target/debug/quorate; measure a release build), PYTHON one that has confluent-kafka. Needs
root, as the lab does.
"""

import argparse
import json
import os
import pathlib
import signal
import socket
import statistics
import subprocess
import sys
import time

HERE = pathlib.Path(__file__).resolve().parent
QUORATE = os.path.abspath(os.environ.get("QUORATE", "target/debug/quorate"))
SIZE = 1024
PORT, PROXY_PORT, PROXY_NODES = 24700, 24760, 24770
# A record that has no report after so long has none.
REPORTS_WITHIN = 180


def arguments():
    parser = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
    parser.add_argument("dir", type=pathlib.Path)
    parser.add_argument("--loss", default="5%")
    parser.add_argument("--delay", default="40ms")
    parser.add_argument("--link-rate")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--rate", type=int, default=100)
    parser.add_argument("--seconds", type=int, default=20)
    parser.add_argument("--partitions", type=int, default=3)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    # The other roles of this file: on host 1 of the lab; the producer; the reader.
    parser.add_argument("--role", default="lab", choices=["lab", "host", "paced", "flood", "read"])
    parser.add_argument("--bootstrap")
    parser.add_argument("--topic")
    return parser.parse_args()


def lab(args):
    args.dir.mkdir(parents=True, exist_ok=True)
    if any(args.dir.iterdir()):
        sys.exit(f"{args.dir} is not empty; name a new directory")
    link = ["--loss", args.loss, "--delay", args.delay, "--seed", str(args.seed)]
    if args.link_rate:
        link += ["--link-rate", args.link_rate]
    command = [QUORATE, "bench", "lab", "--hosts", "2", *link, "--"]
    inside = [sys.executable, __file__, *sys.argv[1:], "--role", "host"]
    # Two turns of a run, their reports, what is read back, and as much again for the rest.
    within = 300 + args.runs * 3 * 2 * (args.seconds + 2 * REPORTS_WITHIN)
    process = subprocess.Popen([*command, *inside])
    try:
        return process.wait(within)
    except (subprocess.TimeoutExpired, KeyboardInterrupt):
        # It ends what runs on its hosts, and takes them away.
        process.send_signal(signal.SIGINT)
        process.wait(60)
        raise


def on_host_2(*command):
    return [QUORATE, "bench", "lab", "exec", "2", "--", *map(str, command)]


def arms():
    has = pathlib.Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    return [f"tcp:{name}" for name in ("cubic", "bbr") if name in has] + ["proxy"]


def use_congestion(name):
    """What TCP uses on both hosts from now on: a property of the route to the other."""
    here, there = os.environ["LAB_HOSTS"].split()
    for source, command in ((here, []), (there, on_host_2())):
        route = ["ip", "route", "replace", "10.77.0.0/16", "dev", "lab0", "src", source, "congctl", name]
        subprocess.run([*command, *route], check=True, timeout=20)


class Cluster:
    """Three nodes on host 2, until it is closed."""

    def __init__(self, args):
        self.host = os.environ["LAB_HOSTS"].split()[1]
        self.bootstrap = ",".join(f"{self.host}:{PORT + node + 2}" for node in (1, 2, 3))
        self.quic = ",".join(f"{self.host}:{PORT + node - 1}" for node in (1, 2, 3))
        self.dir = args.dir / "cluster"
        script = ["sh", HERE / "cluster.sh", self.dir, "sh", "-c", "echo stands; cat"]
        settings = [f"HOST={self.host}", f"PORT={PORT}", f"QUORATE={QUORATE}"]
        self.process = subprocess.Popen(
            on_host_2("env", *settings, *script),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=open(args.dir / "cluster.log", "wb"),
            text=True,
        )
        if self.process.stdout.readline() != "stands\n":
            sys.exit(f"the cluster does not stand; see {args.dir / 'cluster.log'}")

    def certs(self):
        return ["--certs-dir", str(self.dir / "certs-1"), "-b", self.quic]

    def create(self, topic, partitions):
        # On host 2: what the link loses is no matter of this.
        made = on_host_2(QUORATE, *self.certs(), "topic", "create", topic, "-p", partitions)
        subprocess.run(made, check=True, timeout=120, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)

    def close(self):
        self.process.stdin.close()
        self.process.wait(60)


def proxy(args, cluster, turn):
    process = subprocess.Popen(
        [QUORATE, *cluster.certs(), "proxy", "--listen", f"127.0.0.1:{PROXY_PORT}", "--node-ports", str(PROXY_NODES)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=open(args.dir / f"proxy-{turn}.log", "wb"),
    )
    end = time.monotonic() + 60
    while True:
        try:
            socket.create_connection(("127.0.0.1", PROXY_PORT), 1).close()
            return process
        except OSError:
            if process.poll() is not None or time.monotonic() > end:
                process.kill()
                sys.exit(f"the proxy does not listen; see {args.dir / f'proxy-{turn}.log'}")
            time.sleep(0.1)


def stop(process):
    process.send_signal(signal.SIGTERM)
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def role(args, name, bootstrap, topic, output):
    """How this file is called as the producer or the reader. It prints its measurements as JSON."""
    called = [sys.executable, __file__, args.dir, "--role", name, "--bootstrap", bootstrap, "--topic", topic]
    called += ["--partitions", args.partitions, "--rate", args.rate, "--seconds", args.seconds]
    for setting in args.set:
        called += ["--set", setting]
    command = on_host_2(*called) if name == "read" else list(map(str, called))
    within = args.seconds + 2 * REPORTS_WITHIN
    with open(args.dir / output, "wb") as errors:
        return json.loads(subprocess.run(command, check=True, timeout=within, stdout=subprocess.PIPE, stderr=errors).stdout)


def turn(args, cluster, arm, run):
    is_proxy = arm == "proxy"
    if not is_proxy:
        use_congestion(arm.split(":")[1])
    bootstrap = f"127.0.0.1:{PROXY_PORT}" if is_proxy else cluster.bootstrap
    name = f"{arm.replace(':', '-')}-{run}"
    result = {"arm": arm, "run": run, "loss": args.loss, "delay": args.delay, "link_rate": args.link_rate, "rate": args.rate}
    result |= {"seconds": args.seconds, "set": args.set}
    at_work = proxy(args, cluster, name) if is_proxy else None
    try:
        for mode in ("paced", "flood"):
            topic = f"{mode}-{name}"
            cluster.create(topic, args.partitions)
            measured = role(args, mode, bootstrap, topic, f"{topic}.log")
            acked = measured.pop("acked")
            read = role(args, "read", cluster.bootstrap, topic, f"{topic}-read.log")["read"]
            found = dict(read)
            measured["lost"] = sum(1 for number in acked if number not in found)
            measured["doubled"] = sum(1 for count in found.values() if count > 1)
            result[mode] = measured
    finally:
        if at_work:
            stop(at_work)
    return result


def host(args):
    cluster, results = Cluster(args), []
    try:
        for run in range(1, args.runs + 1):
            for arm in arms():
                results.append(turn(args, cluster, arm, run))
                print(json.dumps(results[-1]), flush=True)
    finally:
        cluster.close()
    show(results)
    wrong = sum(each[mode][what] for each in results for mode in ("paced", "flood") for what in ("lost", "doubled", "failed"))
    return 1 if wrong else 0


def show(results):
    columns = [
        ("p50 ms", lambda each: each["paced"]["p50_ms"], max),
        ("p99 ms", lambda each: each["paced"]["p99_ms"], max),
        ("max ms", lambda each: each["paced"]["max_ms"], max),
        ("Mbit/s", lambda each: each["flood"]["mbit_per_s"], min),
    ]
    print(f"\n{'median (worst)':16}" + "".join(f"{name:>20}" for name, *_ in columns) + f"{'lost, doubled, failed':>24}")
    for arm in arms():
        of_arm = [each for each in results if each["arm"] == arm]
        line = f"{arm:16}"
        for _, value, worst in columns:
            values = [value(each) for each in of_arm]
            line += f"{f'{statistics.median(values):.1f} ({worst(values):.1f})':>20}"
        sums = [sum(each[mode][what] for each in of_arm for mode in ("paced", "flood")) for what in ("lost", "doubled", "failed")]
        print(line + f"{', '.join(map(str, sums)):>24}")


def producer_of(args, **settings):
    from confluent_kafka import Producer

    given = dict(setting.split("=", 1) for setting in args.set)
    return Producer(
        {"bootstrap.servers": args.bootstrap, "acks": "all", "enable.idempotence": True, **settings, **given}
    )


def warmed_up(producer, args):
    """Connections, metadata and producer ids are there: one record to each partition, which is not measured."""
    for partition in range(args.partitions):
        producer.produce(args.topic, b"-1", partition=partition)
    if producer.flush(REPORTS_WITHIN):
        raise SystemExit("the first records were not acknowledged")


def value_of(number):
    head = b"%d " % number
    return head + os.urandom(SIZE - len(head))


def paced(args):
    producer = producer_of(args)
    warmed_up(producer, args)
    latencies, acked, failed = [], [], []
    count = args.rate * args.seconds
    values = [value_of(number) for number in range(count)]
    begun = time.monotonic() + 0.1

    def told(number, due):
        def report(error, _message):
            if error:
                failed.append(str(error))
            else:
                latencies.append(time.monotonic() - due)
                acked.append(number)

        return report

    for number, value in enumerate(values):
        due = begun + number / args.rate
        while (early := due - time.monotonic()) > 0:
            producer.poll(early)
        producer.poll(0)
        producer.produce(args.topic, value, partition=number % args.partitions, on_delivery=told(number, due))
    unreported = producer.flush(REPORTS_WITHIN)
    # What was never acknowledged is as late as can be.
    ordered = sorted(latencies) + [float(REPORTS_WITHIN)] * (count - len(latencies))
    at = lambda share: round(1000 * ordered[min(count - 1, int(share * count))], 1)
    measured = {"records": count, "p50_ms": at(0.5), "p99_ms": at(0.99), "max_ms": round(1000 * ordered[-1], 1)}
    print(json.dumps(measured | {"failed": len(failed) + unreported, "errors": sorted(set(failed))[:3], "acked": acked}))


def flood(args):
    from confluent_kafka import KafkaError

    producer = producer_of(args, **{"queue.buffering.max.kbytes": 16384})
    warmed_up(producer, args)
    acked, failed = [], []
    values = [value_of(0)[2:] for _ in range(64)]

    def told(number):
        def report(error, _message):
            if not error:
                acked.append(number)
            elif error.code() != KafkaError._PURGE_QUEUE:
                failed.append(str(error))

        return report

    begun = time.monotonic()
    number = 0
    while time.monotonic() - begun < args.seconds:
        head = b"%d " % number
        value = head + values[number % len(values)][len(head) - 2 :]
        try:
            producer.produce(args.topic, value, partition=number % args.partitions, on_delivery=told(number))
            number += 1
            producer.poll(0)
        except BufferError:
            producer.poll(0.01)
    in_time, took = len(acked), time.monotonic() - begun
    # What it has not begun to send is not sent; what is on its way has its time.
    producer.purge(in_queue=True, in_flight=False)
    unreported = producer.flush(REPORTS_WITHIN)
    measured = {"records": in_time, "mbit_per_s": round(in_time * SIZE * 8 / took / 1e6, 2)}
    print(json.dumps(measured | {"failed": len(failed) + unreported, "errors": sorted(set(failed))[:3], "acked": acked}))


def read(args):
    from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

    consumer = Consumer(
        {
            "bootstrap.servers": args.bootstrap,
            "group.id": "nobody",
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "auto.offset.reset": "earliest",
        }
    )
    consumer.assign([TopicPartition(args.topic, partition, 0) for partition in range(args.partitions)])
    found, at_end = {}, set()
    while len(at_end) < args.partitions:
        message = consumer.poll(1)
        if message is None:
            continue
        if not message.error():
            number = int(message.value().split(b" ", 1)[0])
            if number >= 0:
                found[number] = found.get(number, 0) + 1
        elif message.error().code() == KafkaError._PARTITION_EOF:
            at_end.add(message.partition())
        else:
            raise KafkaException(message.error())
    consumer.close()
    print(json.dumps({"read": list(found.items())}))


if __name__ == "__main__":
    asked = arguments()
    sys.exit({"lab": lab, "host": host, "paced": paced, "flood": flood, "read": read}[asked.role](asked))
