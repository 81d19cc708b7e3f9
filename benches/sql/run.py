#!/usr/bin/env python3
"""SQL by forebay and by the engines of one machine: are the answers right, what do they take? See benches/README.md."""

import argparse
import csv
import json
import math
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))  # What benchmarks share.

from measure import ROOT, python, whole
from suites import CACHE, Suite, taxi, tpch

JOB = """\
name = "query-{number}"
reuse = "off"
[dataset]
source = "file://{data}"
name = "{dataset}"
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
    parser.add_argument("--examples", type=Path, default=ROOT / "target/release/examples", help="where taxi_data is")
    parser.add_argument("--suite", choices=["tpch", "taxi"], default="tpch", help="what is asked")
    parser.add_argument("--scale", type=float, default=1, help="TPC-H's scale factor, about so many GB as text; of taxi, times 60 million rides")
    parser.add_argument("--runs", type=int, default=3, help="medians of so many")
    parser.add_argument("--queries", help="which queries, as 1,2,3")
    parser.add_argument("--tools", default="forebay,datafusion,duckdb", help="of forebay, ballista:N (forebay by Ballista in N workers), datafusion (its Python package), datafusion-cli (on the PATH), duckdb, polars, pyspark (needs Java)")
    parser.add_argument("--kill", action="store_true", help="kill one of Ballista's workers in the middle of each query")
    parser.add_argument("--timeout", type=float, default=600, help="seconds for one query")
    return parser.parse_args()


def rows(path: Path) -> list[list[str | float]]:
    """What a CSV file says, without regard to the order of rows and the last digits of numbers."""

    def value(text: str) -> str | float:
        try:
            return float(text)
        except ValueError:
            return text.strip()

    with path.open(newline="") as file:
        read = [[value(field) for field in row] for row in csv.reader(file)]
    return sorted(read[1:], key=lambda row: [str(field)[:6] for field in row])


def same(ours: list, theirs: list) -> bool:
    def equal(a: str | float, b: str | float) -> bool:
        if isinstance(a, float) and isinstance(b, float):
            return math.isclose(a, b, rel_tol=1e-4, abs_tol=0.011)
        return str(a)[:10] == str(b)[:10]  # A date may come with a time.

    def row(a: list, b: list) -> bool:
        return len(a) == len(b) and all(map(equal, a, b))

    if len(ours) != len(theirs):
        return False
    if all(map(row, ours, theirs)):
        return True
    # Numbers that differ in their last digits were put in another order.
    left = list(theirs)
    for mine in ours:
        at = next((at for at, other in enumerate(left) if row(mine, other)), None)
        if at is None:
            return False
        left.pop(at)
    return True


class Forebay:
    def __init__(self, args: argparse.Namespace, suite: Suite, scratch: Path, workers: int) -> None:
        self.args, self.suite, self.scratch, self.workers = args, suite, scratch, workers
        self.volume = suite.data.with_name(f"volume-{suite.data.name}")
        stage = ["dataset", "stage", f"file://{suite.data}", "--name", args.suite, "--quiet"]
        subprocess.run([args.forebay, "--volume", self.volume, *stage], check=True, capture_output=True)
        self.count = 0

    def run(self, number: int, query: str) -> tuple[dict, list]:
        tables = "\n".join(f'{table} = "{table}/*.parquet"' for table in self.suite.tables)
        engine = "ballista" if self.workers > 1 else "datafusion"
        slots = max(1, (os.cpu_count() or 1) // self.workers)
        said = {"number": number, "data": self.suite.data, "dataset": self.args.suite, "query": query, "tables": tables}
        job = self.scratch / f"{number}.toml"
        job.write_text(JOB.format(**said, engine=engine, workers=self.workers, slots=slots))
        self.count += 1
        run = f"r{os.getpid()}-{self.workers}-{self.count}"
        argv = [str(self.args.forebay), "--volume", str(self.volume), "run", str(job), "--id", run, "--quiet"]
        ended = threading.Event()
        killer = threading.Thread(target=self.kill, args=(run, self.count, ended))
        if self.args.kill and self.workers > 1:
            killer.start()
        try:
            figures = whole(argv, self.scratch, self.args.timeout)
        finally:
            ended.set()
        figures["begun"] = self.begun(run)
        result = rows(self.volume / "runs" / run / "output/part-00000.csv")
        shutil.rmtree(self.volume / "runs" / run)
        return figures, result

    def kill(self, run: str, turn: int, ended: threading.Event) -> None:
        """Kills a worker, another one each time, once one stage of the query has left something to the next."""
        while not any((self.volume / "runs" / run / "shuffle").rglob("*.arrow")):
            if ended.wait(0.002):
                return
        workers = sorted(pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if is_worker(pid, run))
        if workers:
            os.kill(workers[turn % len(workers)], signal.SIGKILL)

    def begun(self, run: str) -> int:
        """How often the query was begun: by one attempt, or by several."""
        asked = [self.args.forebay, "--volume", self.volume, "explain", run, "0", "--json"]
        attempts = json.loads(subprocess.run(asked, check=True, capture_output=True).stdout)["attempts"]
        return sum(int(attempt.get("metrics", {}).get("queries", 1)) for attempt in attempts)


def is_worker(pid: int, run: str) -> bool:
    try:
        argv = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    except OSError:
        return False
    return "worker" in argv and run in argv


class Peer:
    def __init__(self, args: argparse.Namespace, suite: Suite, scratch: Path, name: str) -> None:
        self.args, self.suite, self.scratch, self.name = args, suite, scratch, name

    def run(self, number: int, query: str) -> tuple[dict, list]:
        text, out = self.scratch / f"{number}.sql", self.scratch / f"{number}.csv"
        out.unlink(missing_ok=True)
        figures = whole(self.command(query, text, out), self.scratch, self.args.timeout)
        return figures, rows(out)

    def command(self, query: str, text: Path, out: Path) -> list[str]:
        data, tables = self.suite.data, self.suite.tables
        if self.name == "datafusion-cli":
            made = [f"CREATE EXTERNAL TABLE {table} STORED AS PARQUET LOCATION '{data}/{table}/';" for table in tables]
            copied = f"COPY ({query}) TO '{out}' STORED AS CSV OPTIONS ('format.has_header' 'true');"
            text.write_text("\n".join([*made, copied]))
            return ["datafusion-cli", "--quiet", "--file", str(text)]
        text.write_text(query)
        return [python(HERE / "peers.txt", CACHE / "peers"), str(HERE / "peers.py"), self.name, str(data), str(text), str(out), *tables]


def main() -> int:
    args = arguments()
    suite = tpch(args.scale, python(HERE / "generators.txt", CACHE / "generators")) if args.suite == "tpch" else taxi(args.scale, args.examples)
    asked = [int(number) for number in args.queries.split(",")] if args.queries else list(suite.queries)
    names, wrong, hit = args.tools.split(","), [], 0
    with tempfile.TemporaryDirectory(prefix="forebay-sql-") as scratch:
        reference = Peer(args, suite, Path(scratch), "duckdb")

        def tool(name: str) -> Forebay | Peer:
            kind, _, count = name.partition(":")
            if kind in ("forebay", "ballista"):
                return Forebay(args, suite, Path(scratch), int(count or 1))
            return Peer(args, suite, Path(scratch), name)

        measured = {name: tool(name) for name in names}
        print(f"{suite.title}; medians of {args.runs}; wall s, CPU s, peak MiB of the largest process\n")
        print("| query | " + " | ".join(f"{name} wall | CPU | MiB" for name in names) + " |")
        print("| --- |" + " ---: | ---: | ---: |" * len(names))
        walls: dict[str, list[float]] = {name: [] for name in names}
        for number in asked:
            query = suite.queries[number]
            _, right = reference.run(number, query)
            figures: dict[str, list[dict]] = {name: [] for name in names}
            for turn in range(args.runs):
                for name in names[turn % len(names):] + names[: turn % len(names)]:
                    try:
                        taken, answer = measured[name].run(number, query)
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
            hit += sum(taken.get("begun", 1) > 1 for name in names for taken in figures[name])
        means = {name: math.exp(statistics.fmean(map(math.log, walls[name]))) for name in names}
        print("\n" + "; ".join(f"{name}: geometric mean {mean:.3f} s, {mean / means[names[0]]:.2f} of {names[0]}'s, sum {sum(walls[name]):.1f} s" for name, mean in means.items()))
    if args.kill:
        print(f"\n{hit} queries had to be begun again, because a worker was killed")
    for what in wrong:
        print(what, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
