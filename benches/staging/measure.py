"""One staging by one tool: run, timed, and looked at."""

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from data import MIB, Bucket, key
from server import Failed, dies_with_parent
from tools import Tool, Work, environment

HERE = Path(__file__).parent


@dataclass
class Figures:
    """What one run took. CPU seconds and memory are the tool's and its children's, not the server's or the kernel's
    writing back."""

    wall: float
    user: float
    system: float
    peak: int
    # What a sync of the file system took afterwards, where it was measured.
    sync: float | None = None

    @property
    def cpu(self) -> float:
        return self.user + self.system

    def as_json(self) -> dict:
        return asdict(self)


def run(tool: Tool, work: Work, bucket: Bucket, timeout: float, first: bool) -> Figures:
    """Stages once. On the first run of a tool over a bucket every byte is compared, and the sync afterwards timed."""
    work.home.mkdir(parents=True, exist_ok=True)
    work.out.parent.mkdir(parents=True, exist_ok=True)
    report, log = work.home / "report.json", work.home / "output.log"
    report.unlink(missing_ok=True)
    launcher = [sys.executable, "-I", "-S", HERE / "launch.py", report, str(timeout)]
    argv = [str(word) for word in [*launcher, *tool.command(work)]]
    with log.open("wb") as output:
        options = {"cwd": work.home, "env": environment(tool, work), "preexec_fn": dies_with_parent}
        launched = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=output, stderr=output, **options)
        try:
            launched.wait()
        except BaseException:
            # Not kill: on this signal it ends the tool too.
            launched.terminate()
            launched.wait()
            raise
    if launched.returncode:
        raise Failed(f"{tool.name} could not be started: {tail(log)}")
    told = json.loads(report.read_text())
    if told["late"]:
        raise Failed(f"{tool.name} was ended after {timeout:.0f} s")
    if told["code"]:
        raise Failed(f"{tool.name} ended with {told['code']}: {tail(log)}")
    figures = Figures(told["wall"], told["user"], told["system"], told["peak"])
    if first:
        began = time.monotonic()
        os.sync()
        figures.sync = time.monotonic() - began
    check(tool, tool.staged(work), bucket, every_byte=first)
    return figures


def tail(log: Path) -> str:
    return log.read_text(errors="replace").strip()[-400:] or "it said nothing"


def check(tool: Tool, staged: Path, bucket: Bucket, every_byte: bool) -> None:
    """Whether all that was to come is there, and nothing else."""
    number = total = 0
    for folder, _, names in os.walk(staged):
        number += len(names)
        total += sum(os.lstat(os.path.join(folder, name)).st_size for name in names)
    if (number, total) != (bucket.count, bucket.bytes):
        raise Failed(f"{tool.name} left {number} files of {total} bytes, not {bucket.count} of {bucket.bytes}")
    if not every_byte:
        return
    if bucket.stub_file:
        pairs = ((bucket.stub_file, key(index)) for index in range(bucket.count))
    else:
        pairs = ((file, str(file.relative_to(bucket.directory))) for file in bucket.files())
    for file, name in pairs:
        if not same(file, staged / name):
            raise Failed(f"{tool.name} left another content at {name}")


def same(one: Path, other: Path) -> bool:
    try:
        with one.open("rb", buffering=0) as left, other.open("rb", buffering=0) as right:
            while True:
                a, b = left.read(4 * MIB), right.read(4 * MIB)
                if a != b:
                    return False
                if not a:
                    return True
    except FileNotFoundError:
        return False


def warm(bucket: Bucket) -> None:
    """Reads what is served, so that it is in the page cache for every tool alike."""
    buffer = bytearray(MIB)
    for file in bucket.files():
        with file.open("rb", buffering=0) as source:
            while source.readinto(buffer):
                pass


def forget(directory: Path) -> None:
    """Takes written files out of the page cache, so that they do not push out what is served."""
    for folder, _, names in os.walk(directory):
        for name in names:
            file = os.open(os.path.join(folder, name), os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
