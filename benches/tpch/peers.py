"""A query by another engine: `peers.py ENGINE DATA QUERY OUT`. One process, as anybody would write it."""

import csv
import sys
from pathlib import Path

TABLES = ["customer", "lineitem", "nation", "orders", "part", "partsupp", "region", "supplier"]


def duckdb(data: Path, query: str, out: Path) -> None:
    import duckdb as engine

    connection = engine.connect()
    for table in TABLES:
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM '{data}/{table}/*.parquet'")
    connection.execute(f"COPY ({query}) TO '{out}' (HEADER, FORMAT csv)")


def datafusion(data: Path, query: str, out: Path) -> None:
    import datafusion as engine

    context = engine.SessionContext()
    for table in TABLES:
        context.register_parquet(table, f"{data}/{table}/")
    batches = context.sql(query).collect()
    # Its own writer of CSV makes a directory of many files.
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        for batch in batches:
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns)))


def pyspark(data: Path, query: str, out: Path) -> None:
    from pyspark.sql import SparkSession

    # All of the machine; the partitions of a shuffle by default, 200, are those of a cluster.
    builder = SparkSession.builder.master("local[*]").config("spark.sql.shuffle.partitions", "4")
    session = builder.config("spark.driver.memory", "8g").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    for table in TABLES:
        session.read.parquet(f"{data}/{table}").createOrReplaceTempView(table)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows(session.sql(query).collect())


if __name__ == "__main__":
    name, data, query, out = sys.argv[1:]
    {"duckdb": duckdb, "datafusion": datafusion, "pyspark": pyspark}[name](Path(data), Path(query).read_text().strip().rstrip(";"), Path(out))
