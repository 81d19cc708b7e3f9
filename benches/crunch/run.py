#!/usr/bin/env python3
"""Compares what crunching data costs once it is staged: one command, one table. See benches/README.md."""

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # What benchmarks share.

from measure import ROOT, cache, python, whole

CACHE = cache("crunch")
NEEDLE = "Quito;"  # As peers.py has it.
JOB = """\
name = "crunch"
reuse = "off"
[dataset]
source = "file://{source}"
[mapreduce]
map = {map}
partitions = {cores}
[workers]
count = 1
slots = {cores}
"""


@dataclass
class Row:
    name: str
    title: str
    data: str
    # What forebay maps with; the others go by the row's name.
    map: str
    tools: list[str]
    unit: str = "a GiB"


PEERS = ["by hand", "duckdb", "polars"]
ROWS = [
    Row("words", "word-count, Zipf-distributed words", "words", '"word-count"', ["forebay", *PEERS]),
    Row("lines", "line-count, stations", "stations", '"line-count"', ["forebay", *PEERS]),
    Row("grep", "grep, a line in 413, stations", "stations", f'"grep {NEEDLE}"', ["forebay", *PEERS]),
    Row("pipe", "a map program that reads all: cat >/dev/null", "words", '["sh", "-c", "exec cat >/dev/null"]', ["forebay", "cat"]),
    Row("cat", "a map program that writes all: cat", "words", '["cat"]', ["forebay"]),
]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--forebay", type=Path, default=ROOT / "target/release/forebay", help="the program to measure")
    parser.add_argument("--before", type=Path, help="another build of it, to be measured in turn with it")
    parser.add_argument("--examples", type=Path, default=ROOT / "target/release/examples", help="where by_hand and text_data are")
    parser.add_argument("--size", type=float, default=2, help="GiB of each kind of text")
    parser.add_argument("--runs", type=int, default=3, help="medians of so many")
    parser.add_argument("--rows", default=",".join(row.name for row in ROWS), help="which rows")
    parser.add_argument("--tools", default="forebay,by hand,duckdb,polars,cat", help="which tools")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one command")
    return parser.parse_args()


def texts(kind: str, args: argparse.Namespace) -> list[str]:
    """Eight files, made once by a seeded generator, and in the page cache."""
    made = CACHE / f"{kind}-{args.size:g}"
    if not made.exists():
        new = Path(tempfile.mkdtemp(prefix="new-", dir=CACHE))
        subprocess.run([args.examples / "text_data", kind, new, str(int(args.size * 2**30)), "8"], check=True)
        new.rename(made)
    files = sorted(str(file) for file in made.iterdir())
    subprocess.run(["cat", *files], stdout=subprocess.DEVNULL, check=True)
    return files


def staged(volume: Path, files: list[str]) -> None:
    """What a run finds there already: no tool's time is in it. Read once, so that it is in the page cache as well."""
    source = Path(files[0]).parent
    job = volume / "job.toml"
    if not job.exists():
        volume.mkdir()
        job.write_text(f"file://{source}")
        subprocess.run([ARGS.forebay.resolve(), "--volume", volume, "--quiet", "dataset", "stage", f"file://{source}"], check=True, stdout=subprocess.DEVNULL)
    for file in volume.glob("datasets/*/snapshots/*/data/*"):
        file.read_bytes()


def command(row: Row, tool: str, volume: Path, scratch: Path, files: list[str]) -> list[str]:
    out = str(scratch / "out.csv")
    match tool:
        case "forebay" | "before":
            text = JOB.format(source=Path(files[0]).parent, map=row.map, cores=os.cpu_count())
            program = row.map.startswith("[")
            text += "" if program else '[output]\nformat = "csv"\n'
            text = text.replace("partitions", 'reduce = ["cat"]\npartitions') if program else text
            job = scratch / "job.toml"
            job.write_text(text)
            build = ARGS.before if tool == "before" else ARGS.forebay
            return [str(build.resolve()), "--volume", str(volume), "--quiet", "run", str(job)]
        case "by hand":
            needle = [NEEDLE] if row.name == "grep" else []
            return [str(ARGS.examples / "by_hand"), row.name, *needle, out, *files]
        case "cat":
            return ["sh", "-c", f"cat {Path(files[0]).parent}/* | cat >/dev/null"]
        case _:
            return [python(HERE / "requirements.txt", CACHE / "venv"), str(HERE / "peers.py"), tool, row.name, out, *files]


def once(row: Row, tool: str, volume: Path, files: list[str]) -> tuple[dict[str, float], int]:
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    try:
        figures = whole(command(row, tool, volume, scratch, files), scratch, ARGS.timeout)
        return figures, records(volume if tool in ("forebay", "before") else scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for run in volume.glob("runs/*"):
            shutil.rmtree(run, ignore_errors=True)


def records(where: Path) -> int:
    """Rows of a result, which has to be as long as the others': the parts of an output, or the file that a peer wrote."""
    found = [*where.glob("runs/*/output/part-*"), *where.glob("out.csv")]
    headers = sum(file.suffix == ".csv" for file in found)
    return sum(file.read_bytes().count(b"\n") for file in found) - headers


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    failed = 0
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {ARGS.size:g} GiB of each text, medians of {ARGS.runs}\n")
    print("| row | tool | wall s | ÷ by hand | CPU s | ÷ by hand | peak MiB |\n|---|---|---:|---:|---:|---:|---:|")
    for row in (row for row in ROWS if row.name in ARGS.rows.split(",")):
        files = texts(row.data, ARGS)
        volume = CACHE / f"volume-{row.data}-{ARGS.size:g}"
        staged(volume, files)
        # Of a benchmark that was ended.
        for run in volume.glob("runs/*"):
            shutil.rmtree(run)
        tools = [tool for tool in row.tools if tool in ARGS.tools.split(",")]
        tools[1:1] = ["before"] if ARGS.before else []
        runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
        lengths: dict[str, int] = {}
        # They take turns, so that what else the machine does meets all of them.
        for turn in range(ARGS.runs):
            for tool in tools[turn % len(tools) :] + tools[: turn % len(tools)]:
                try:
                    figures, lengths[tool] = once(row, tool, volume, files)
                    runs[tool].append(figures)
                except RuntimeError as error:
                    failed += 1
                    print(f"failed: {row.name}: {tool}: {error}", file=sys.stderr)
        if row.name in ("words", "lines", "grep") and len(set(lengths.values())) > 1:
            failed += 1
            print(f"failed: {row.name}: the results are not of the same length: {lengths}", file=sys.stderr)
        medians = {tool: {what: statistics.median(run[what] for run in ran) for what in ran[0]} for tool, ran in runs.items() if ran}
        hand = medians.get("by hand")
        for tool, median in medians.items():
            ratio = {what: f"{median[what] / hand[what]:.2f}" if hand else "" for what in ("wall", "cpu")}
            print(
                f"| {row.title} | {tool} | {median['wall']:.2f} | {ratio['wall']} | {median['cpu']:.2f} | {ratio['cpu']} | {median['peak']:.0f} |",
                flush=True,
            )
    return 1 if failed else 0


if __name__ == "__main__":
    ARGS = arguments()
    sys.exit(main())
