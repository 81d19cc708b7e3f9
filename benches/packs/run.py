#!/usr/bin/env python3
"""What a file an object costs a volume, beside one file with all of them: see benches/README.md."""

import argparse
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

MIB = 1 << 20


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("volume", type=Path, help="a directory on the mount to measure; a new one in it is used")
    parser.add_argument("--count", type=int, default=20_000, help="objects")
    parser.add_argument("--size", type=int, default=100, help="bytes of each")
    parser.add_argument("--threads", type=int, default=24, help="how many write, or read, at once")
    parser.add_argument("--sync", choices=["each", "once"], default="once", help="each file, as on NFS, or all at the end")
    parser.add_argument("--runs", type=int, default=3, help="medians of so many")
    return parser.parse_args()


def write(path: Path, content: bytes, sync: bool) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644)
    try:
        for begin in range(0, len(content), MIB):
            os.write(file, content[begin : begin + MIB])
        if sync:
            os.fsync(file)
    finally:
        os.close(file)


def read(path: Path) -> int:
    file = os.open(path, os.O_RDONLY)
    try:
        return sum(len(block) for block in iter(lambda: os.read(file, MIB), b""))
    finally:
        os.close(file)


def in_threads(threads: int, work, paths: list[Path]) -> list:
    """Each thread takes the next of these in one go, so that little of the time is the pool's."""
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(lambda part: [work(path) for path in part], [paths[n::threads] for n in range(threads)]))


def timed(work) -> tuple[float, float]:
    def cpu() -> float:
        used = resource.getrusage(resource.RUSAGE_SELF)
        return used.ru_utime + used.ru_stime

    wall, before = time.perf_counter(), cpu()
    work()
    return time.perf_counter() - wall, cpu() - before


def forget() -> None:
    """What is read next comes from where it lies, not from this host's memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def measure(args: argparse.Namespace, scratch: Path) -> dict[str, tuple[float, float]]:
    content = os.urandom(args.size)
    # As staging lays them out: some hundred to a directory.
    directories = [scratch / f"{n:04}" for n in range(-(-args.count // 500))]
    files = [directories[n // 500] / f"{n:07}" for n in range(args.count)]
    pack = scratch / "pack"

    def write_files() -> None:
        for directory in directories:
            directory.mkdir()
        in_threads(args.threads, lambda path: write(path, content, args.sync == "each"), files)
        if args.sync == "once":
            os.sync()

    def read_all(paths: list[Path]) -> None:
        total = sum(map(sum, in_threads(args.threads, read, paths)))
        assert total == args.count * args.size, f"{total} bytes were read"

    figures = {"write, a file each": timed(write_files)}
    figures["write, one pack"] = timed(lambda: write(pack, content * args.count, True))
    forget()
    figures["read, a file each"] = timed(lambda: read_all(files))
    forget()
    figures["read, one pack"] = timed(lambda: read_all([pack]))
    return figures


def main() -> int:
    args = arguments()
    runs = []
    for _ in range(args.runs):
        scratch = Path(tempfile.mkdtemp(prefix="packs-", dir=args.volume))
        try:
            runs.append(measure(args, scratch))
        finally:
            shutil.rmtree(scratch)
    print(f"{args.count:,} objects of {args.size:,} bytes, {args.threads} threads, synced {args.sync}, medians of {args.runs}\n")
    print("| what | wall s | µs an object | CPU s |\n|---|---:|---:|---:|")
    for what in runs[0]:
        wall, cpu = (statistics.median(run[what][n] for run in runs) for n in (0, 1))
        print(f"| {what} | {wall:.2f} | {wall / args.count * 1e6:.0f} | {cpu:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
