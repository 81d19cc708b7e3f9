"""Runs one command and tells what it took. Used by measure.py as `launch.py REPORT SECONDS COMMAND...`.

A program of its own because of `ru_maxrss`: what the kernel reports for a child begins with the memory of the process
that it was forked from, and this one is small.
"""

import json
import os
import signal
import sys
import time


def main() -> None:
    report, seconds, *command = sys.argv[1:]
    began = time.monotonic()
    child = os.posix_spawnp(command[0], command, os.environ, setpgroup=0)
    late = False

    def end(signum, _frame):
        nonlocal late
        late = late or signum == signal.SIGALRM
        os.killpg(child, signal.SIGKILL)

    for signum in (signal.SIGALRM, signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, end)
    signal.setitimer(signal.ITIMER_REAL, float(seconds))
    _, status, usage = os.wait4(child, 0)
    wall = time.monotonic() - began
    with open(report, "w") as file:
        json.dump(
            {
                "code": os.waitstatus_to_exitcode(status),
                "late": late,
                "wall": wall,
                "user": usage.ru_utime,
                "system": usage.ru_stime,
                "peak": usage.ru_maxrss * 1024,
            },
            file,
        )


main()
