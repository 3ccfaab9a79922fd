"""What the Python drivers of failover.py have in common: their command line, the lines that they print, the steady rate.

usage: DRIVER.py produce BOOTSTRAP TOPIC PARTITIONS RATE         value N goes to partition N % PARTITIONS, RATE of them a second
       DRIVER.py consume BOOTSTRAP TOPIC GROUP                   one member of the group
       DRIVER.py transact BOOTSTRAP IN OUT PARTITIONS GROUP ID   reads IN in the group, writes each value twice to OUT
       DRIVER.py read BOOTSTRAP TOPIC PARTITIONS ISOLATION       the whole topic, then ends by itself

All but the last end, in good order, once standard input ends. They print a line for each thing that happened:

    acked N PARTITION OFFSET     the producer was told so        failed N WHY       the producer gave the value up
    holds PARTITION…             what the member reads now       read PARTITION OFFSET VALUE
    begun T COUNT                transaction T has COUNT values  committed T / aborted T / unknown T WHY   how it ended
    note WHAT                    worth a look, no failure        error WHAT         this driver can go on no more
    end                          the last line of one that ended well

GROUP_PROTOCOL in the environment, where it is "consumer", has the members be those of the newer protocol (KIP-848).
"""

import os
import sys
import threading
import time

WRITTEN = threading.Lock()
stopping = threading.Event()


def say(*words):
    line = " ".join(str(word) for word in words).replace("\n", " ")
    with WRITTEN:
        print(line, flush=True)


def why(error):
    return f"{type(error).__name__}: {error}"[:300]


def due(rate):
    """The numbers from 0, each at its time at a steady rate: a pause is made up for. Yields the number and the seconds to wait."""
    begun, number = time.monotonic(), 0
    while not stopping.is_set():
        yield number, max(0.0, begun + number / rate - time.monotonic())
        number += 1


# A transaction takes so many records at most, and each fourth is aborted once all of it is sent.
BATCH = 40


def is_to_abort(transaction):
    return transaction % 4 == 3


def outcomes(transaction, number, partitions):
    """What a transaction writes for one value: where, and what."""
    for copy in (0, 1):
        yield (number + copy) % partitions, b"%d/%d/%d" % (transaction, number, copy)


def main(roles):
    def watch():
        # Not through sys.stdin: the interpreter's end would find it locked by this thread.
        while os.read(0, 4096):
            pass
        stopping.set()

    role, *arguments = sys.argv[1:]
    threading.Thread(target=watch, daemon=True).start()
    try:
        roles[role](*[int(word) if word.isdigit() else word for word in arguments])
    except Exception as error:
        say("error", why(error))
        sys.exit(1)
    say("end")
