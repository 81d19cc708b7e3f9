#!/usr/bin/env python3
"""TPC-H's 22 queries by forebay and by the engines of one machine: are they right, what do they take? See benches/README.md."""

import argparse
import csv
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # What benchmarks share.

from measure import ROOT, cache, python, whole
from peers import TABLES

CACHE = cache("tpch")
JOB = """\
name = "tpch-{number}"
reuse = "off"
[dataset]
source = "file://{data}"
name = "tpch"
[sql]
engine = "{engine}"
query = '''
{query}'''
[sql.tables]
{tables}
[workers]
count = {workers}
slots = {slots}
[output]
format = "csv"
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--forebay", type=Path, default=ROOT / "target/release/forebay", help="the program to measure")
    parser.add_argument("--scale", type=float, default=1, help="TPC-H's scale factor: about so many GB as text")
    parser.add_argument("--runs", type=int, default=3, help="medians of so many")
    parser.add_argument("--queries", default=",".join(map(str, range(1, 23))), help="which queries")
    parser.add_argument("--tools", default="forebay,datafusion,duckdb", help="of forebay, ballista:N (forebay by Ballista in N workers), datafusion, duckdb, pyspark (needs Java)")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one query")
    return parser.parse_args()


def made(scale: float, tools: str) -> Path:
    data = CACHE / f"scale-{scale:g}"
    if not data.exists():
        making = data.with_name(f"{data.name}.making")
        shutil.rmtree(making, ignore_errors=True)
        generator = str(Path(tools).parent / "tpchgen-cli")
        # Row groups as those who write such tables make them, in as many files as a job of some tasks would write.
        argv = [generator, "parquet", "-s", f"{scale:g}", "--row-group-bytes", "64MiB", "--parts", "4", "--output-dir", str(making)]
        subprocess.run(argv, check=True, capture_output=True)
        making.rename(data)
    return data


def queries(tools: str) -> dict[int, str]:
    text = subprocess.run(
        [tools, "-c", "import duckdb, json; print(json.dumps(duckdb.sql('FROM tpch_queries()').fetchall()))"],
        check=True, capture_output=True, text=True,
    ).stdout
    return {number: query.strip().rstrip(";") for number, query in json.loads(text)}


def rows(path: Path, header: bool) -> list[list[str | float]]:
    """What a CSV file says, without regard to the order of rows and the last digits of numbers."""

    def value(text: str) -> str | float:
        try:
            return float(text)
        except ValueError:
            return text.strip()

    with path.open(newline="") as file:
        read = [[value(field) for field in row] for row in csv.reader(file)]
    return sorted(read[1:] if header else read, key=lambda row: [str(field)[:6] for field in row])


def same(ours: list, theirs: list) -> bool:
    def equal(a: str | float, b: str | float) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-4, abs_tol=0.011)
        return str(a)[:10] == str(b)[:10]  # A date may come with a time.

    def row(a: list, b: list) -> bool:
        return len(a) == len(b) and all(map(equal, a, b))

    if len(ours) != len(theirs):
        return False
    left = list(theirs)
    for mine in ours:
        at = next((at for at, other in enumerate(left) if row(mine, other)), None)
        if at is None:
            return False
        left.pop(at)
    return True


class Forebay:
    def __init__(self, args: argparse.Namespace, data: Path, scratch: Path, workers: int) -> None:
        self.args, self.data, self.scratch, self.workers = args, data, scratch, workers
        self.volume = data.with_name(f"volume-{data.name}")
        subprocess.run([args.forebay, "--volume", self.volume, "dataset", "stage", f"file://{data}", "--name", "tpch", "--quiet"], check=True, capture_output=True)
        self.count = 0

    def run(self, number: int, query: str) -> tuple[dict, list]:
        tables = "\n".join(f'{table} = "{table}/*.parquet"' for table in TABLES)
        engine = "ballista" if self.workers > 1 else "datafusion"
        slots = max(1, (os.cpu_count() or 1) // self.workers)
        job = self.scratch / f"{number}.toml"
        job.write_text(JOB.format(number=number, data=self.data, query=query, tables=tables, engine=engine, workers=self.workers, slots=slots))
        self.count += 1
        run = f"r{os.getpid()}-{self.workers}-{self.count}"
        figures = whole([str(self.args.forebay), "--volume", str(self.volume), "run", str(job), "--id", run, "--quiet"], self.scratch, self.args.timeout)
        result = rows(self.volume / "runs" / run / "output/part-00000.csv", header=True)
        shutil.rmtree(self.volume / "runs" / run)
        return figures, result


class Peer:
    def __init__(self, args: argparse.Namespace, data: Path, scratch: Path, name: str, program: str) -> None:
        self.args, self.data, self.scratch, self.name, self.program = args, data, scratch, name, program

    def run(self, number: int, query: str) -> tuple[dict, list]:
        text, out = self.scratch / f"{number}.sql", self.scratch / f"{number}.csv"
        text.write_text(query)
        argv = [self.program, str(HERE / "peers.py"), self.name, str(self.data), str(text), str(out)]
        return whole(argv, self.scratch, self.args.timeout), rows(out, header=self.name == "duckdb")


def main() -> int:
    args = arguments()
    tools = python(HERE / "requirements.txt", CACHE / "requirements")
    peers = python(HERE / "peers.txt", CACHE / "peers")
    data, texts = made(args.scale, tools), queries(tools)
    names, wrong = args.tools.split(","), []
    with tempfile.TemporaryDirectory(prefix="forebay-tpch-") as scratch:
        reference = Peer(args, data, Path(scratch), "duckdb", peers)

        def tool(name: str) -> Forebay | Peer:
            kind, _, count = name.partition(":")
            if kind in ("forebay", "ballista"):
                return Forebay(args, data, Path(scratch), int(count or 1))
            return Peer(args, data, Path(scratch), name, peers)

        measured = {name: tool(name) for name in names}
        print(f"TPC-H, scale factor {args.scale:g}; medians of {args.runs}; wall s, CPU s, peak MiB of the largest process\n")
        print("| query | " + " | ".join(f"{name} wall | CPU | MiB" for name in names) + " |")
        print("| --- |" + " ---: | ---: | ---: |" * len(names))
        walls: dict[str, list[float]] = {name: [] for name in names}
        for number in map(int, args.queries.split(",")):
            _, right = reference.run(number, texts[number])
            figures: dict[str, list[dict]] = {name: [] for name in names}
            for turn in range(args.runs):
                for name in names[turn % len(names):] + names[: turn % len(names)]:
                    try:
                        taken, answer = measured[name].run(number, texts[number])
                    except RuntimeError as error:
                        wrong.append(f"{name}, query {number}: {error}")
                        continue
                    figures[name].append(taken)
                    if turn == 0 and not same(answer, right):
                        wrong.append(f"{name}, query {number}: {len(answer)} rows, not those of DuckDB ({len(right)})")
            cells = []
            for name in names:
                median = {key: statistics.median(taken[key] for taken in figures[name]) for key in ("wall", "cpu", "peak")} if figures[name] else None
                walls[name].append(median["wall"] if median else math.nan)
                cells.append(f"{median['wall']:.2f} | {median['cpu']:.2f} | {median['peak']:.0f}" if median else "- | - | -")
            print(f"| {number} | " + " | ".join(cells) + " |", flush=True)
        means = {name: math.exp(statistics.fmean(map(math.log, walls[name]))) for name in names}
        print("\n" + "; ".join(f"{name}: geometric mean {mean:.3f} s, {mean / means[names[0]]:.2f} of {names[0]}'s, sum {sum(walls[name]):.1f} s" for name, mean in means.items()))
    for what in wrong:
        print(what, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
