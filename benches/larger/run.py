#!/usr/bin/env python3
"""Queries over more data than their worker has memory: group-by, sort and join, whether right, spilled, and how large."""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Numbers below it are scattered by multiplying modulo it, and stay distinct.
PRIME = 2_147_483_647
MAKE = """\
name = "make"
reuse = "off"
[dataset]
source = "./seed"
[sql]
query = '''
SELECT value % {groups} * 48271 % {prime} AS k, value AS v, random() AS noise, value * 69621 % {prime} AS scattered
FROM generate_series(1, {rows})'''
tables = {{ seed = "seed.csv" }}
[workers]
memory = "{making}"
[output]
to = "./data"
"""
JOB = """\
name = "larger"
reuse = "off"
[dataset]
source = "./data"
name = "data"
include = ["*.parquet"]
[sql]
query = '''{query}'''
[sql.tables]
t = "part-*.parquet"
[workers]
memory = "{memory}"
[output]
format = "csv"
"""
QUERIES = {
    # What each gives is known without a computer; `noise` is carried along, so that rows are as wide as they are.
    "group by": "SELECT count(*) AS c, sum(s) AS s FROM (SELECT k, sum(v) AS s, max(noise) AS m FROM t GROUP BY k) WHERE m >= 0",
    "sort": """SELECT count(*) AS c, sum(CASE WHEN scattered >= p THEN v ELSE -1 END) AS s FROM (
        SELECT scattered, v, noise, coalesce(lag(scattered) OVER (ORDER BY scattered), scattered) AS p FROM t)
        WHERE noise >= 0""",
    "join": "SELECT count(*) AS c, sum(a.v) AS s FROM t a JOIN t b ON a.v = b.v WHERE a.noise + b.noise >= 0",
}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--forebay", type=Path, default=ROOT / "target/release/forebay", help="the program to measure")
    parser.add_argument("--rows", type=int, default=140_000_000, help="of the table: 32 bytes each, which are 4.2 GiB")
    parser.add_argument("--groups", type=int, default=50_000_000, help="of the group-by")
    parser.add_argument("--memory", default="512MiB", help="of the worker")
    parser.add_argument("--making", default="4GiB", help="memory for making the table")
    parser.add_argument("--queries", nargs="+", default=list(QUERIES), choices=list(QUERIES))
    parser.add_argument("--out", type=Path, help="the file system to work on; a new directory in it is used")
    return parser.parse_args()


def forebay(program: Path, work: Path, *command: str) -> tuple[dict, float]:
    """What it printed, and the MiB of the largest of its processes."""
    process = subprocess.Popen([program, "--volume", work / "volume", *command, "--json"], stdout=subprocess.PIPE, cwd=work)
    printed = process.stdout.read()
    _, _, usage = os.wait4(process.pid, 0)
    return json.loads(printed), usage.ru_maxrss / 1024


def run(program: Path, work: Path, job: str) -> tuple[dict, float]:
    (work / "job.toml").write_text(job)
    return forebay(program, work, "run", "job.toml")


def main() -> int:
    args = arguments()
    args.forebay = args.forebay.resolve()
    work = Path(tempfile.mkdtemp(prefix="forebay-larger-", dir=args.out)).resolve()
    wrong = False
    try:
        (work / "seed").mkdir()
        (work / "seed" / "seed.csv").write_text("n\n1\n")
        made, _ = run(args.forebay, work, MAKE.format(prime=PRIME, groups=args.groups, rows=args.rows, making=args.making))
        print(f"{args.rows:,} rows, {made['output']['bytes'] / 2**30:.2f} GiB of Parquet, memory {args.memory}", file=sys.stderr)
        print("| query | right | seconds | peak of the largest process, MiB | spilled, GiB | plans |")
        print("|---|---|---|---|---|---|")
        expected = f"c,s\n{{}},{args.rows * (args.rows + 1) // 2}\n"
        for name in args.queries:
            begun = time.monotonic()
            given, peak = run(args.forebay, work, JOB.format(query=QUERIES[name], memory=args.memory))
            seconds = time.monotonic() - begun
            if given.get("state") != "succeeded":
                print(f"{name}: {given}", file=sys.stderr)
                wrong = True
                continue
            rows = {"group by": args.groups}.get(name, args.rows)
            text = (Path(given["output"]["path"]) / "part-00000.csv").read_text()
            right = text == expected.format(rows)
            wrong |= not right
            explained, _ = forebay(args.forebay, work, "explain", given["run"], "0")
            attempt = explained["attempts"][-1]
            spilled, plans = attempt["metrics"]["spilled_bytes"] / 2**30, attempt["metrics"]["plans"]
            print(f"| {name} | {'yes' if right else text} | {seconds:.0f} | {peak:.0f} | {spilled:.2f} | {plans:.0f} |", flush=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
