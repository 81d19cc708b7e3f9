#!/usr/bin/env python3
"""Compares what crunching data costs once it is staged: one command, one table. See benches/README.md."""

import argparse
import csv
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
BEFORE = " before"
JOB = """\
name = "crunch"
reuse = "off"
[dataset]
source = "file://{source}"
{work}
[workers]
count = 1
slots = {cores}
"""
CORES = os.cpu_count()


@dataclass
class Job:
    """What forebay does: the sections of a job file that say the work and its output, and the program that knows it."""

    work: str
    program: str = "forebay"


def mapped(by: str, program: str = "forebay") -> Job:
    """By a built-in, or what is compiled into a program of the examples."""
    return Job(f'[mapreduce]\nmap = {by}\npartitions = {CORES}\n[output]\nformat = "csv"', program)


def streamed(by: str) -> Job:
    """By a program."""
    return Job(f'[mapreduce]\nmap = {by}\nreduce = ["cat"]\npartitions = {CORES}')


def queried(query: str, table: str) -> Job:
    return Job(f'[sql]\nquery = "{query}"\n[sql.tables]\n{table}\n[output]\nformat = "csv"')


@dataclass
class Row:
    name: str
    title: str
    data: str
    # Forebay's ways to do it, by what the table calls them, before the peers.
    jobs: dict[str, Job]
    peers: list[str]
    # Whether results are small and are compared number by number, and not in their length alone.
    values: bool = False


PEERS = ["by hand", "duckdb", "polars"]
BY_STATION = "SELECT station, min(t) AS min, avg(t) AS mean, max(t) AS max FROM stations GROUP BY station ORDER BY station"
STATIONS = (
    'stations = { include = ["*"], format = "csv", delimiter = ";", header = false, newlines = false, '
    'columns = ["station", "t"], schema = { station = "VARCHAR", t = "DOUBLE" } }'
)
ROWS = [
    Row("words", "word-count, Zipf-distributed words", "words", {"forebay": mapped('"word-count"')}, PEERS),
    Row("lines", "line-count, stations", "stations", {"forebay": mapped('"line-count"')}, PEERS),
    Row("grep", "grep, a line in 413, stations", "stations", {"forebay": mapped(f'"grep {NEEDLE}"')}, PEERS),
    Row(
        "stations",
        "min, mean and max by station",
        "stations",
        {"forebay, native": mapped('{ native = "stations" }', "stations"), "forebay, SQL": queried(BY_STATION, STATIONS)},
        PEERS,
        values=True,
    ),
    Row(
        "pipe",
        "a map program that reads all: cat >/dev/null",
        "words",
        {"forebay": streamed('["sh", "-c", "exec cat >/dev/null"]')},
        ["cat"],
    ),
    Row("cat", "a map program that writes all: cat", "words", {"forebay": streamed('["cat"]')}, ["sort"]),
]


# Of benches/sql.
SUITES = ["taxi", "tpch"]


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--forebay", type=Path, default=ROOT / "target/release/forebay", help="the program to measure")
    parser.add_argument("--before", type=Path, help="another build of it, to be measured in turn with it")
    examples = ROOT / "target/release/examples"
    parser.add_argument("--examples", type=Path, default=examples, help="where by_hand, text_data and native jobs are")
    parser.add_argument("--size", type=float, default=2, help="GiB of each kind of text")
    parser.add_argument("--runs", type=int, default=3, help="medians of so many")
    rows = ",".join([*(row.name for row in ROWS), *SUITES])
    parser.add_argument("--rows", default=rows, help="which rows; the last are tables by benches/sql")
    parser.add_argument("--tools", default="forebay,by hand,duckdb,polars,cat,sort", help="which tools")
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
    stage = ["--volume", volume, "--quiet", "dataset", "stage", f"file://{Path(files[0]).parent}"]
    subprocess.run([ARGS.forebay.resolve(), *stage], check=True, stdout=subprocess.DEVNULL)
    for file in volume.glob("datasets/*/snapshots/*/data/*"):
        file.read_bytes()


def command(row: Row, tool: str, volume: Path, scratch: Path, files: list[str]) -> list[str]:
    out = str(scratch / "out.csv")
    match tool:
        case "by hand":
            needle = [NEEDLE] if row.name == "grep" else []
            return [str(ARGS.examples / "by_hand"), row.name, *needle, out, *files]
        case "cat":
            return ["sh", "-c", f"cat {Path(files[0]).parent}/* | cat >/dev/null"]
        case "sort":
            options = [f"--parallel={CORES}", "-S", "1G", "-T", str(scratch), "-o", str(scratch / "out.txt")]
            return ["env", "LC_ALL=C", "sort", *options, *files]
        case "duckdb" | "polars":
            return [python(HERE / "requirements.txt", CACHE / "venv"), str(HERE / "peers.py"), tool, row.name, out, *files]
        case _:
            before = tool.endswith(BEFORE)
            given = row.jobs[tool.removesuffix(BEFORE)]
            job = scratch / "job.toml"
            job.write_text(JOB.format(source=Path(files[0]).parent, work=given.work, cores=CORES))
            build = ARGS.before if before else ARGS.forebay
            if given.program != "forebay":
                build = (build.parent if before else ARGS.examples) / given.program
            return [str(build.resolve()), "--volume", str(volume), "--quiet", "run", str(job)]


def once(row: Row, tool: str, volume: Path, files: list[str]) -> tuple[dict[str, float], object]:
    scratch = Path(tempfile.mkdtemp(prefix="run-", dir=CACHE))
    try:
        figures = whole(command(row, tool, volume, scratch, files), scratch, ARGS.timeout)
        found = [*volume.glob("runs/*/output/part-*"), *scratch.glob("out.*")]
        return figures, values(found) if row.values else records(found)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        for run in volume.glob("runs/*"):
            shutil.rmtree(run, ignore_errors=True)


def records(found: list[Path]) -> int:
    """Rows of a result, which has to be as long as the others': the parts of an output, or the file that a peer wrote."""
    headers = sum(file.suffix == ".csv" for file in found)
    return sum(file.read_bytes().count(b"\n") for file in found) - headers


def values(found: list[Path]) -> list[tuple[str, ...]]:
    """The rows of a small result, in an order of their own, numbers to nine digits."""

    def cell(text: str) -> str:
        try:
            return f"{float(text):.9g}"
        except ValueError:
            return text

    rows = [row for file in found for row in list(csv.reader(file.open(newline="")))[1:]]
    return sorted(tuple(map(cell, row)) for row in rows)


def main() -> int:
    CACHE.mkdir(parents=True, exist_ok=True)
    failed = 0
    print(f"{time.strftime('%Y-%m-%d')}, {os.cpu_count()} cores, {ARGS.size:g} GiB of each text, medians of {ARGS.runs}\n")
    print("| row | tool | wall s | ÷ by hand | CPU s | ÷ by hand | peak MiB | written MiB |\n|---|---|---:|---:|---:|---:|---:|---:|")
    for row in (row for row in ROWS if row.name in ARGS.rows.split(",")):
        files = texts(row.data, ARGS)
        volume = CACHE / f"volume-{row.data}-{ARGS.size:g}"
        staged(volume, files)
        # Of a benchmark that was ended.
        for run in volume.glob("runs/*"):
            shutil.rmtree(run)
        chosen = ARGS.tools.split(",")
        ours = list(row.jobs) if "forebay" in chosen else []
        before = [tool + BEFORE for tool in ours if ARGS.before]
        tools = [*ours, *before, *(tool for tool in row.peers if tool in chosen)]
        runs: dict[str, list[dict[str, float]]] = {tool: [] for tool in tools}
        results: dict[str, object] = {}
        # They take turns, so that what else the machine does meets all of them.
        for turn in range(ARGS.runs):
            for tool in tools[turn % len(tools) :] + tools[: turn % len(tools)]:
                try:
                    figures, results[tool] = once(row, tool, volume, files)
                    runs[tool].append(figures)
                except RuntimeError as error:
                    failed += 1
                    print(f"failed: {row.name}: {tool}: {error}", file=sys.stderr)
        # What only reads has no result.
        if row.name != "pipe" and any(result != next(iter(results.values())) for result in results.values()):
            failed += 1
            told = {tool: len(result) if isinstance(result, list) else result for tool, result in results.items()}
            print(f"failed: {row.name}: the results are not the same: {told} rows", file=sys.stderr)
        medians = {tool: {what: statistics.median(run[what] for run in ran) for what in ran[0]} for tool, ran in runs.items() if ran}
        hand = medians.get("by hand") or medians.get("sort")
        for tool, median in medians.items():
            ratio = {what: f"{median[what] / hand[what]:.2f}" if hand else "" for what in ("wall", "cpu")}
            cells = [row.title, tool, f"{median['wall']:.2f}", ratio["wall"], f"{median['cpu']:.2f}", ratio["cpu"]]
            print(f"| {' | '.join(cells)} | {median['peak']:.0f} | {median['written']:.0f} |", flush=True)
    for suite in (suite for suite in SUITES if suite in ARGS.rows.split(",")):
        print(flush=True)
        argv = [sys.executable, HERE.parent / "sql/run.py", "--suite", suite, "--runs", str(ARGS.runs)]
        failed += subprocess.run([*argv, "--forebay", ARGS.forebay, "--examples", ARGS.examples]).returncode
    return 1 if failed else 0


if __name__ == "__main__":
    ARGS = arguments()
    sys.exit(main())
