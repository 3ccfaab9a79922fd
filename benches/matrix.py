"""The matrix of `quorate bench arms`: every loss × round trip × rate × arm, cell by cell, and the tables that are made of it.

usage: matrix.py run FILE [--quorate PROGRAM] [--minutes N]    measures what FILE lacks, the core first; needs root and Linux
       matrix.py show FILE                                     prints the tables, in Markdown

FILE holds what `bench arms --output json` printed, a measurement on a line. One that is there is not measured again, so a matrix that was
broken off goes on where it was. Take another FILE for another program: what was measured is not looked at for what measured it.

The core is of 48 cells (12 links, four arms), three runs each; all other cells have one. Records on their way are six times what
the link holds, 4,096 at least and 64 MiB at most: a lost packet keeps what came after it on its lane from being acknowledged, so three times are not
enough at 5 %. How long that makes them wait is in the times.
"""

import argparse
import collections
import json
import statistics
import subprocess
import sys
import time

ARMS = ["quic:keel", "quic:cubic", "quic:bbr", "tcp:cubic", "tcp:bbr"]
LOSSES = [0, 0.1, 1, 2, 5, 10]  # percent, each way
ROUND_TRIPS = [1, 20, 100, 200]  # ms
RATES = [100, 1000]  # Mbit/s
CORE_ARMS, CORE_LOSSES, CORE_ROUND_TRIPS, CORE_RUNS = ["quic:keel", "quic:cubic", "tcp:cubic", "tcp:bbr"], [0, 1, 5], [20, 100], 3
RECORD_BYTES = 1024
MOST_RECORDS = (64 << 20) // RECORD_BYTES
SECONDS, WARMUP_SECONDS = 6, 4
# A queue of half of what the link holds, but no shorter than is common: what makes neither arm the winner beforehand.
LEAST_QUEUE, PACKET_BYTES = 250, 1500

Link = collections.namedtuple("Link", "loss round_trip rate")


def links():
    every = [Link(loss, round_trip, rate) for rate in RATES for round_trip in ROUND_TRIPS for loss in LOSSES]
    return sorted(every, key=lambda link: not is_core(link))


def is_core(link):
    return link.loss in CORE_LOSSES and link.round_trip in CORE_ROUND_TRIPS


def held(link):
    """Bytes that are under way on a link without a queue."""
    return link.rate * 1e6 / 8 * link.round_trip / 1e3


def measured(file):
    """The lines of a file by link, arm and run."""
    found = {}
    try:
        with open(file) as lines:
            for line in lines:
                cell = json.loads(line)
                link = Link(round(100 * cell["loss"], 6), round(cell["rtt_ms"], 6), round(cell["link_mbit"], 6))
                found[link, f"{cell['arm']}:{cell['congestion']}", cell["seed"]] = cell
    except FileNotFoundError:
        pass
    return found


def run(file, quorate, minutes):
    ends = time.monotonic() + 60 * minutes
    failed = 0
    wanted = [
        (seed, link, arm)
        for seed in range(1, CORE_RUNS + 1)
        for link in links()
        for arm in ARMS
        if seed == 1 or is_core(link) and arm in CORE_ARMS
    ]
    # The core's runs before what is measured once.
    wanted.sort(key=lambda cell: not (is_core(cell[1]) and cell[2] in CORE_ARMS))
    there = measured(file)
    for count, (seed, link, arm) in enumerate(wanted, 1):
        if (link, arm, seed) in there:
            continue
        if time.monotonic() > ends:
            print(f"matrix: the time is over, {count - 1} of {len(wanted)} measurements are there: start it again to go on", file=sys.stderr)
            return 1
        in_flight = min(max(int(6 * held(link) / RECORD_BYTES), 4096), MOST_RECORDS)
        queue = max(int(held(link) / 2 / PACKET_BYTES), LEAST_QUEUE)
        command = [quorate, "bench", "arms", "--arm", arm, "--seed", seed, "--output", "json"]
        command += ["--loss", f"{link.loss}%", "--delay", f"{link.round_trip / 2}ms", "--link-rate", f"{link.rate}mbit", "--queue", queue]
        command += ["--record-size", RECORD_BYTES, "--in-flight", in_flight, "--duration", f"{SECONDS}s", "--warmup", f"{WARMUP_SECONDS}s"]
        print(f"{count}/{len(wanted)}: {' '.join(map(str, command[1:]))}", file=sys.stderr)
        ended = subprocess.run(list(map(str, command)), stdout=subprocess.PIPE, text=True)
        with open(file, "a") as lines:
            lines.write(ended.stdout)
        # Ctrl-C is the child's too, which has removed everything; 10 is a measurement that is not sound, and says so itself.
        if ended.returncode == 130:
            return 130
        failed += ended.returncode != 0
    if failed:
        print(f"matrix: {failed} measurements failed or are not sound", file=sys.stderr)
    return int(failed > 0)


def medians(measurements):
    """Of each link and arm: its cells in the median, and how many runs that is of."""
    runs = collections.defaultdict(list)
    for (link, arm, _), cell in measurements.items():
        runs[link, arm].append(cell)
    fields = ["mbit_per_s", "link_used_mbit", "commit_p50_ms", "commit_p99_ms", "self_loss", "cpu_idle"]

    def median(cells, field):
        values = [cell[field] for cell in cells if cell[field] is not None]
        return statistics.median(values) if values else None

    return {key: {field: median(cells, field) for field in fields} | {"runs": len(cells)} for key, cells in runs.items()}


def number(value):
    if value is None:
        return "-"
    return f"{value:.0f}" if value >= 10 else f"{value:.1f}"


def show(file):
    measurements = measured(file)
    cells = medians(measurements)
    unsound = [cell for cell in measurements.values() if cell["lost"] or cell["duplicated"] or cell["unacknowledged"] or not cell["replicas_agree"]]
    print(f"{len(measurements)} measurements of {len(cells)} cells; {len(unsound)} not sound.")
    for rate in RATES:
        for what, text in [
            ("link_used_mbit", "Mbit/s on the leader's better link, headers included; in parentheses the processors' idle share where it was under 10 %"),
            ("commit", "commit p50 / p99, ms"),
            ("self_loss", "packets lost in the link's own queue, %"),
        ]:
            print(f"\n**{rate} Mbit/s: {text}**\n")
            print("| loss, % | RTT, ms | " + " | ".join(ARMS) + " |\n" + "| --- " * (2 + len(ARMS)) + "|")
            for link in sorted(links()):
                if link.rate != rate:
                    continue
                row = []
                for arm in ARMS:
                    cell = cells.get((link, arm))
                    if cell is None:
                        row.append("-")
                    elif what == "commit":
                        row.append(f"{number(cell['commit_p50_ms'])} / {number(cell['commit_p99_ms'])}")
                    elif what == "self_loss":
                        row.append(f"{100 * cell[what]:.2f}")
                    else:
                        idle = cell["cpu_idle"]
                        row.append(number(cell[what]) + (f" ({100 * idle:.0f} %)" if idle is not None and idle < 0.1 else ""))
                print(f"| {link.loss} | {link.round_trip} | " + " | ".join(row) + " |")
    print("\n**Where `quic:keel` carries less than 0.97 × `tcp:bbr`**\n")
    print("| loss, % | RTT, ms | Mbit/s | keel | TCP BBR | share | idle, % |\n| --- | --- | --- | --- | --- | --- | --- |")
    for link in sorted(links()):
        ours, theirs = cells.get((link, "quic:keel")), cells.get((link, "tcp:bbr"))
        if ours and theirs and ours["mbit_per_s"] < 0.97 * theirs["mbit_per_s"]:
            share = ours["mbit_per_s"] / theirs["mbit_per_s"]
            idle = " / ".join(number(100 * cell["cpu_idle"]) for cell in (ours, theirs))
            print(f"| {link.loss} | {link.round_trip} | {link.rate} | {number(ours['mbit_per_s'])} | {number(theirs['mbit_per_s'])} | {share:.2f} | {idle} |")
    return 0


parser = argparse.ArgumentParser(usage=__doc__.replace("%", "%%"))
parser.add_argument("what", choices=["run", "show"])
parser.add_argument("file")
parser.add_argument("--quorate", default="quorate")
parser.add_argument("--minutes", type=float, default=float("inf"))
given = parser.parse_args()
sys.exit(run(given.file, given.quorate, given.minutes) if given.what == "run" else show(given.file))
