"""franz-go's own tests of its client (go test ./pkg/kgo), against a cluster of three nodes or more.

usage: franz_suite.py CHECKOUT BOOTSTRAP [PATTERN]

CHECKOUT is franz-go's source; PATTERN is what go test takes after -run. Each test runs in a process of its own, for TIMEOUT
seconds (900) at most, and its output is kept in CHECKOUT/out. The environment reaches the tests: KGO_TEST_RECORDS says how
many records the large ones carry (franz-go's own figure is 500000), KGO_TEST_RF how many replicas their topics have (3), and
KGO_TEST_SCRAM_SEEDS and KGO_TEST_SCRAM (user:password:256) where they can log in.

Prints a line for each test that talks to the cluster, and then how many passed, failed and were skipped. The others, which
bring what they talk to or need nothing, run together and are counted apart. Ends with 1 where any failed.
"""

import os
import pathlib
import re
import subprocess
import sys
import time

TIMEOUT = int(os.environ.get("TIMEOUT", "900"))
# What a test calls that is to talk to the cluster.
TALKS = re.compile(r"\b(newTestClient|testClientOpts|getSeedBrokers|tmpTopic\w*|tmpNamedTopic\w*|adm)\(|scramSeeds|testChain\w*\(|newTestConsumer\(")
RESULT = re.compile(r"^(\s*)--- (PASS|FAIL|SKIP): (\S+) \(([\d.]+)s\)", re.M)


def tests_of(package):
    """Names of the tests that talk to a cluster, and those of the others."""
    remote, local = [], []
    for source in sorted(package.glob("*_test.go")):
        functions = re.split(r"^func ", source.read_text(), flags=re.M)[1:]
        for function in functions:
            name = re.match(r"(Test\w*)\(t \*testing\.T\)", function)
            if name:
                (remote if TALKS.search(function) else local).append(name.group(1))
    return remote, local


def run(binary, package, pattern, out, environment):
    """The output of the tests whose names match, and how long they took."""
    arguments = [binary, "-test.v", f"-test.run={pattern}", f"-test.timeout={TIMEOUT}s"]
    started = time.monotonic()
    with open(out, "wb") as log:
        # go test's own timeout says where each goroutine is; this one is for when it does not come.
        try:
            subprocess.run(arguments, cwd=package, stdout=log, stderr=log, env=environment, timeout=TIMEOUT + 60, check=False)
        except subprocess.TimeoutExpired:
            pass
    return out.read_text(errors="replace"), time.monotonic() - started


def reason(text, name):
    """The first thing that the test itself says of why it failed or was skipped."""
    said = re.search(r"^\s+\w+_test\.go:\d+: (.*)", text, re.M)
    if said:
        return said.group(1)[:160]
    panic = re.search(r"^panic: (.*)", text, re.M)
    return panic.group(1)[:160] if panic else f"{name} did not end"


def main():
    checkout = pathlib.Path(sys.argv[1]).resolve()
    package = checkout / "pkg" / "kgo"
    out = checkout / "out"
    out.mkdir(exist_ok=True)
    binary = str(out / "kgo.test")
    subprocess.run(["go", "test", "-c", "-o", binary, "./pkg/kgo"], cwd=checkout, check=True)
    environment = {**os.environ, "KGO_SEEDS": sys.argv[2]}
    remote, local = tests_of(package)
    wanted = re.compile(sys.argv[3]) if len(sys.argv) > 3 else None
    counts = {}
    for name in remote:
        if wanted and not wanted.search(name):
            continue
        text, took = run(binary, package, f"^{name}$", out / f"{name}.log", environment)
        results = RESULT.findall(text)
        own = [state for indent, state, test, _ in results if test == name]
        state = {"PASS": "passed", "SKIP": "skipped"}.get(own[0] if own else "FAIL", "failed")
        parts = [(test, result) for indent, result, test, _ in results if indent]
        skipped = sum(result == "SKIP" for _, result in parts)
        why = ""
        if state != "passed":
            why = reason(text, name)
        elif skipped:
            why = f"{skipped} of its {len(parts)} parts skipped: {reason(text, name)}"
        counts[state] = counts.get(state, 0) + 1
        print(f"{name:45} {state:8} {took:7.1f} s  {why}", flush=True)
    if not wanted:
        text, _ = run(binary, package, f"^({'|'.join(local)})$", out / "local.log", environment)
        passed = sum(state == "PASS" and not indent for indent, state, _, _ in RESULT.findall(text))
        print(f"franz-go: {passed} of {len(local)} tests passed that need no cluster")
        if passed != len(local):
            counts["failed"] = counts.get("failed", 0) + len(local) - passed
    print("franz-go: " + ", ".join(f"{count} {state}" for state, count in sorted(counts.items())))
    sys.exit(1 if counts.get("failed") else 0)


if __name__ == "__main__":
    main()
