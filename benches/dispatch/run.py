#!/usr/bin/env python3
"""Compares what a task costs that does nothing: one command, one table. See benches/README.md."""

import argparse
import os
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # What benchmarks share.

from measure import ROOT, cache, python, whole

CACHE = cache("dispatch")
JOB = """\
name = "nothing"
[dataset]
source = "file://{source}"
[command]
argv = ["true"]
[split]
by = "bytes"
count = {count}
[workers]
count = {workers}
slots = {slots}
"""


@dataclass
class Row:
    name: str
    title: str
    work: str
    count: int
    tools: list[str]


PEERS = ["hyperqueue", "dask", "ray"]
ROWS = [
    Row("cold", "one program, from nothing", "true", 1, ["forebay", *PEERS, "parallel", "xargs"]),
    Row("true", "2,000 programs", "true", 2000, ["forebay", *PEERS, "parallel", "xargs"]),
    Row("noop", "10,000 of nothing", "noop", 10_000, ["forebay", "dask", "ray"]),
    Row("noop5", "100,000 of nothing", "noop", 100_000, ["forebay"]),
    Row("noop6", "1,000,000 of nothing", "noop", 1_000_000, ["forebay"]),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--forebay", type=Path, default=ROOT / "target/release/forebay", help="the program to measure")
    parser.add_argument("--runs", type=int, default=3, help="medians of so many")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="which rows")
    parser.add_argument("--tools", default=",".join(ROWS[0].tools), help="which tools")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one command")
    return parser.parse_args()


def command(row: Row, tool: str, forebay: Path, scratch: Path) -> list[str]:
    match tool:
        case "forebay":
            source = scratch / "source"
            source.mkdir()
            # A byte a task and the end of its line.
            (source / "lines.txt").write_text("x\n" * row.count)
            workers, slots = (2, 1) if row.work == "noop" else (1, 2)
            job = scratch / "job.toml"
            job.write_text(JOB.format(source=source, count=row.count, workers=workers, slots=slots))
            pretend = ["--pretend"] if row.work == "noop" else []
            return [str(forebay), "--volume", str(scratch / "volume"), "--quiet", "run", str(job), *pretend]
        case "xargs":
            return ["sh", "-c", f"seq {row.count} | xargs -P 2 -n 1 true"]
        case "parallel":
            return ["sh", "-c", f"seq {row.count} | parallel -j 2 true"]
        case _:
            return [python(HERE / "requirements.txt", CACHE), str(HERE / "peers.py"), tool, row.work, str(row.count)]


def once(row: Row, tool: str, args: argparse.Namespace) -> dict[str, float]:
    scratch = Path(tempfile.mkdtemp(prefix="dispatch-", dir=CACHE))
    try:
        return whole(command(row, tool, args.forebay.resolve(), scratch), scratch, args.timeout)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def main() -> int:
    args = arguments()
    CACHE.mkdir(parents=True, exist_ok=True)
    failed = 0
    head = "| row | tool | wall s | tasks a second | CPU µs a task | of these the tool's first process | peak MiB |"
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, medians of {args.runs}\n\n{head}\n|---|---|---:|---:|---:|---:|---:|")
    for row in (row for row in ROWS if row.name in args.rows.split(",")):
        for tool in (tool for tool in row.tools if tool in args.tools.split(",")):
            try:
                runs = [once(row, tool, args) for _ in range(args.runs)]
            except RuntimeError as error:
                failed += 1
                print(f"failed: {row.name}: {tool}: {error}", file=sys.stderr)
                continue
            wall, cpu, own, peak = (statistics.median(run[what] for run in runs) for what in ("wall", "cpu", "own", "peak"))
            micros = [f"{seconds / row.count * 1e6:,.0f}" if row.count > 1 else "" for seconds in (cpu, own)]
            rate = f"{row.count / wall:,.0f}" if row.count > 1 else ""
            print(f"| {row.title} | {tool} | {wall:.3f} | {rate} | {micros[0]} | {micros[1]} | {peak:.0f} |", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
