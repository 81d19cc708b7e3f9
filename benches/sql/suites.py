"""What is asked of the engines: a suite is some tables, as Parquet in the cache, and queries that all of them understand."""

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from measure import cache

CACHE = cache("sql")
# Those with which rides by taxi in New York are asked about since Mark Litwintschik's "A Billion Taxi Rides" benchmarks
# (tech.marksblogg.com/benchmarks.html), with whole miles by floor, since engines round halves differently; and one that has
# many groups.
RIDES = [
    "SELECT cab_type, count(*) AS rides FROM rides GROUP BY cab_type",
    "SELECT passengers, avg(total) AS mean FROM rides GROUP BY passengers",
    "SELECT passengers, extract(year FROM picked_up) AS year, count(*) AS rides FROM rides GROUP BY passengers, year",
    """SELECT passengers, extract(year FROM picked_up) AS year, floor(distance) AS miles, count(*) AS rides
    FROM rides GROUP BY passengers, year, miles ORDER BY year, rides DESC""",
    """SELECT from_zone, to_zone, count(*) AS rides, avg(tip) AS tip, max(distance) AS farthest
    FROM rides GROUP BY from_zone, to_zone""",
]


@dataclass
class Suite:
    title: str
    data: Path
    tables: list[str]
    queries: dict[int, str]


def tpch(scale: float, tools: str) -> Suite:
    """TPC-H; `tools` is the Python of the packages that have its generator and its queries."""

    def make(data: Path) -> None:
        generator = str(Path(tools).parent / "tpchgen-cli")
        # Row groups as those who write such tables make them, in as many files as a job of some tasks would write.
        argv = [generator, "parquet", "-s", f"{scale:g}", "--row-group-bytes", "64MiB", "--parts", "4", "--output-dir", data]
        subprocess.run(argv, check=True, capture_output=True)

    tables = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]
    asked = "import duckdb, json; print(json.dumps(duckdb.sql('FROM tpch_queries()').fetchall()))"
    text = subprocess.run([tools, "-c", asked], check=True, capture_output=True, text=True).stdout
    queries = {number: query.strip().rstrip(";") for number, query in json.loads(text)}
    return Suite(f"TPC-H, scale factor {scale:g}", made(f"tpch-{scale:g}", make), tables, queries)


def taxi(scale: float, examples: Path) -> Suite:
    """A table like that of taxi rides; `examples` is where its generator is."""
    rows = int(scale * 60_000_000)

    def make(data: Path) -> None:
        (data / "rides").mkdir(parents=True)
        subprocess.run([examples / "taxi_data", data / "rides", str(rows), "12"], check=True)

    return Suite(f"taxi, {rows:,} rides", made(f"taxi-{scale:g}", make), ["rides"], dict(enumerate(RIDES, 1)))


def made(name: str, make) -> Path:
    """Once, and whole or not at all."""
    data = CACHE / name
    if not data.exists():
        making = data.with_name(f"{name}.making")
        shutil.rmtree(making, ignore_errors=True)
        making.parent.mkdir(parents=True, exist_ok=True)
        make(making)
        making.rename(data)
    return data
