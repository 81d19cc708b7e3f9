#!/usr/bin/env python3
"""Compares forebay with the tools that copy from S3: one command, one table. See benches/README.md."""

import argparse
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import data
import measure
import server
import table
import tools

ROOT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forebay" / "bench"


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    rows, all_rows = ",".join(data.DEFAULT_ROWS), [row.name for row in data.ROWS]
    parser.add_argument("--forebay", type=Path, default=ROOT / "target/release/forebay", help="the program to measure")
    parser.add_argument("--runs", type=positive(int), default=5, help="how often each tool does each row")
    parser.add_argument("--rows", type=names(all_rows), default=rows, help=f"some of {','.join(all_rows)}")
    parser.add_argument("--tools", type=names(tools.NAMES), default=",".join(tools.NAMES), help="which to compare")
    parser.add_argument("--scale", type=positive(float), default=1.0, help="shrinks every row, for a quick trial")
    parser.add_argument("--million", action="store_true", help="adds 20,000 and 1,000,000 objects of 100 bytes, once")
    parser.add_argument("--million-peers", action="store_true", help="the same by the peers too, which takes long")
    parser.add_argument("--timeout", type=positive(float), default=900, help="seconds for one command")
    parser.add_argument("--cache", type=Path, default=CACHE, help="for the peers and the data, kept between runs")
    parser.add_argument("--out", type=Path, help="the file system to stage to; a new directory in it is used")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also writes the figures of every run")
    parser.add_argument("--log-requests", action="store_true", help="keeps what the run leaves, with nginx's log")
    args = parser.parse_args()
    args.rows = [row for row in data.ROWS if row.name in args.rows]
    if args.million or args.million_peers:
        args.rows += [row for row in data.ROWS if row.name in data.MILLION_ROWS and row not in args.rows]
    return args


def positive(kind):
    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    return parse


def names(known: list[str]):
    def parse(text: str) -> list[str]:
        given = text.split(",")
        for name in given:
            if name not in known:
                raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(known)}")
        return given

    return parse


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def ended(*_) -> None:
    # The same may come again, as from timeout(1), and must not cut the clearing up short.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def main() -> int:
    args = arguments()
    # So that servers are ended and outputs removed however this is ended.
    signal.signal(signal.SIGTERM, ended)
    try:
        return compare(args)
    except server.Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def compare(args: argparse.Namespace) -> int:
    args.cache.mkdir(parents=True, exist_ok=True)
    chosen = tools.chosen(args.tools, args.forebay, args.cache, say)
    if not chosen:
        raise server.Failed("none of the tools can run here")
    # Also reads each program from the disk for the first time.
    versions = [version for tool in chosen if tool.name != "forebay-no-sync" for version in [tool.version()]]
    kept = args.cache / "data" / f"scale-{args.scale:g}"
    kept.mkdir(parents=True, exist_ok=True)
    buckets = [data.bucket(row, kept, args.scale, say) for row in args.rows]
    out = args.out or args.cache
    out.mkdir(parents=True, exist_ok=True)
    check_room(args, out, buckets, chosen)
    results: dict[tuple[str, str], list[measure.Figures]] = {}
    failures = []
    try:
        run_rows(args, buckets, chosen, kept, out, results, failures)
    finally:
        # Also of a run that was interrupted: what was measured is told.
        report(args, table.heading(versions, out, args.runs, args.scale), chosen, buckets, results)
    for failure in failures:
        print(f"failed: {failure}", file=sys.stderr)
    return 1 if failures else 0


def run_rows(args, buckets, chosen, kept, out, results, failures) -> None:
    with ExitStack() as stack:
        scratch = Path(tempfile.mkdtemp(prefix="run-", dir=out.resolve()))
        # At the end and not between the runs: ext4 makes files several times slower right after it removed many.
        stack.callback(say if args.log_requests else remove, f"kept {scratch}" if args.log_requests else scratch)
        stubs = [bucket.row.name for bucket in buckets if bucket.row.stub]
        nginx = stack.enter_context(server.nginx(kept.resolve(), stubs, scratch / "nginx", args.log_requests))
        for bucket in buckets:
            if bucket.row.server == "nginx":
                server.check_listing(nginx, bucket.row.name)
            with ExitStack() as of_row:
                endpoint = nginx.endpoint
                if bucket.row.server == "rclone":
                    binary = tools.install(args.cache, say)[0] / "rclone"
                    signing = server.rclone(binary, kept.resolve(), scratch / "rclone")
                    endpoint = of_row.enter_context(signing).endpoint
                stage(args, bucket, chosen, endpoint, scratch, results, failures)


def report(args, heading, chosen, buckets, results) -> None:
    print(heading, end="\n\n")
    print(table.table(chosen, buckets, results), end="\n\n")
    print(table.goals(chosen, buckets, results))
    if args.json:
        figures = [
            {"row": row, "tool": tool, "runs": [run.as_json() for run in runs]} for (row, tool), runs in results.items()
        ]
        args.json.write_text(json.dumps({"version": 1, "scale": args.scale, "figures": figures}, indent=1) + "\n")


def stagings(args, row: data.Row, chosen: list[tools.Tool]) -> tuple[list[tools.Tool], int]:
    """Which tools stage a row, and how often."""
    if row.name not in data.MILLION_ROWS:
        return list(chosen), args.runs
    return [tool for tool in chosen if args.million_peers or tool.name.startswith("forebay")], 1


def stage(args, bucket, chosen, endpoint, scratch, results, failures) -> None:
    """All runs of one row: every tool once, then every tool again, each time beginning with another one."""
    row = bucket.row
    able, rounds = stagings(args, row, chosen)
    for turn in range(rounds):
        begin = turn % len(able) if able else 0
        for tool in able[begin:] + able[:begin]:
            out = scratch / "out" / row.name / f"{tool.name}-{turn}"
            work = tools.Work(endpoint, row.name, out, scratch / "home" / tool.name)
            os.sync()
            measure.warm(bucket)
            try:
                figures = measure.run(tool, work, bucket, args.timeout, first=turn == 0)
            except server.Failed as error:
                failures.append(f"{row.name}: {error}")
                say(failures[-1])
                # One failure is told; the same again would tell nothing.
                able = [other for other in able if other is not tool]
                results[row.name, tool.name] = []
            else:
                results.setdefault((row.name, tool.name), []).append(figures)
                say(
                    f"{row.name} {turn + 1}/{rounds} {tool.name}: {figures.wall:.2f} s, CPU {figures.cpu:.2f} s, "
                    f"{figures.peak / data.MIB:.0f} MiB"
                )
            if row.large:
                remove(out)
            else:
                os.sync()
                measure.forget(out)


def remove(directory: Path) -> None:
    shutil.rmtree(directory, onerror=lambda _call, path, error: say(f"not removed: {path}: {error[1]}"))


def check_room(args, out: Path, buckets: list[data.Bucket], chosen: list[tools.Tool]) -> None:
    """Before the first byte: what the outputs take at most at one time."""
    block = 4096
    needed = max((bucket.bytes for bucket in buckets if bucket.row.large), default=0)
    files = 0
    for bucket in (bucket for bucket in buckets if not bucket.row.large):
        able, rounds = stagings(args, bucket.row, chosen)
        needed += (bucket.bytes + block * bucket.count) * len(able) * rounds
        files += bucket.count * len(able) * rounds
    disk = os.statvfs(out)
    free = disk.f_bavail * disk.f_frsize
    # Some file systems count no files.
    if needed > free * 0.9 or (disk.f_files and files > disk.f_favail * 0.9):
        raise server.Failed(
            f"the outputs need {needed / data.GIB:.0f} GiB and {files:,} files, and {out} has room for "
            f"{free / data.GIB:.0f} GiB and {disk.f_favail:,}: say fewer --runs, --rows or --tools, or another --out"
        )


if __name__ == "__main__":
    sys.exit(main())
