"""librdkafka's own tests, as its test runner has them, against a cluster.

usage: librdkafka_suite.py CHECKOUT BOOTSTRAP [TEST…]

CHECKOUT is librdkafka's source, built: ./configure && make libs && make -C tests build. TEST is a number such as 0103;
without any, all run that need a broker. Those that bring a mock cluster of their own, or need none, are counted apart.
Each runs in a process of its own, for TIMEOUT seconds (600) at most, and its output is kept in CHECKOUT/tests/out.
QUICK=1 has the runner do less of everything. Some tests call Kafka's own tools, which kafka_home.sh brings: KAFKA_PATH says
where. TEST_SCENARIO=noautocreate has those run that want a cluster which makes no topics by itself
(SERVER_FLAGS="--auto-create-topics false" for cluster.sh); without it they are left out.

Prints a line for each test, and then how many passed, failed and were skipped. Ends with 1 where any failed.
"""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

SCENARIO = os.environ.get("TEST_SCENARIO", "default")
# What the tests are told that they talk to: it decides which of them run.
KAFKA_VERSION = os.environ.get("TEST_KAFKA_VERSION", "4.0.0")
TIMEOUT = int(os.environ.get("TIMEOUT", "600"))
SUMMARY = re.compile(r"\|\S* (\w+)\s*\|\s*(\w+) \|\s*([\d.]+)s \S*\|(.*)")
COLOUR = re.compile(r"\x1b\[\d+m")


def tests_of(source):
    """Names of the tests that need a broker, and those of the others."""
    remote, local = [], []
    table = source[source.index("struct test tests[]"):]
    for line in re.split(r"\b_TEST\(", table)[1:]:
        name, flags = re.match(r"\s*(\w+),\s*([^,)]+)", line).groups()
        # Up to where the next test begins, so that a test's own settings are found and no other's.
        scenario = re.search(r'\.scenario = "(\w+)"', line)
        if "MANUAL" in flags or (scenario.group(1) if scenario else "default") != SCENARIO:
            continue
        alone = "TEST_F_LOCAL" in flags or name.endswith("_mock")
        (local if alone else remote).append(name)
    return remote, local


def run(folder, number, out, brokers):
    """What the runner says of each test of that number: its state, seconds, and reason."""
    arguments = ["./test-runner", "-p1", "-L"] + (["-Q"] if os.environ.get("QUICK") else [])
    settings = {"LD_LIBRARY_PATH": "../src:../src-cpp", "TESTS": number, "TEST_KAFKA_VERSION": KAFKA_VERSION}
    settings |= {"TEST_SCENARIO": SCENARIO, "BROKERS": brokers}
    started = time.monotonic()
    with open(out, "wb") as log:
        child = subprocess.Popen(
            arguments, cwd=folder, stdout=log, stderr=log, env={**os.environ, **settings}, start_new_session=True
        )
        try:
            child.wait(TIMEOUT)
            ended = f"the runner ended with {child.returncode}"
        except subprocess.TimeoutExpired:
            # A group of its own, so that nothing that a test has forked stays behind.
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            ended = f"not done after {TIMEOUT} s"
    text = COLOUR.sub("", out.read_text(errors="replace"))
    said = {name: (state, float(took), why.strip()) for name, state, took, why in SUMMARY.findall(text)}
    return said, ended, time.monotonic() - started


def main():
    folder = pathlib.Path(sys.argv[1], "tests").resolve()
    remote, local = tests_of((folder / "test.c").read_text())
    chosen = [name for name in remote if not sys.argv[3:] or name[:4] in sys.argv[3:]]
    (folder / "test.conf").write_text(f"bootstrap.servers={sys.argv[2]}\ntest.topic.random=true\n")
    (folder / "out").mkdir(exist_ok=True)
    counts = {}
    results = {}
    for name in chosen:
        number = name[:4]
        if number not in results:
            results[number] = run(folder, number, folder / "out" / f"{number}.log", sys.argv[2])
        said, ended, took = results[number]
        state, took, why = said.get(name, ("FAILED", took, ended))
        if state == "RUNNING":
            state, why = "FAILED", ended
        counts[state] = counts.get(state, 0) + 1
        print(f"{name:45} {state.lower():8} {took:7.1f} s  {why}", flush=True)
    summary = ", ".join(f"{count} {state.lower()}" for state, count in sorted(counts.items()))
    print(f"librdkafka: {summary}; {len(local)} that need no broker were not run")
    sys.exit(1 if counts.get("FAILED") else 0)


if __name__ == "__main__":
    main()
