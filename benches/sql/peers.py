"""A query by another engine: `peers.py ENGINE DATA QUERY OUT TABLE…`. One process, as anybody would write it."""

import csv
import sys
from pathlib import Path


def duckdb(data: Path, query: str, out: Path, tables: list[str]) -> None:
    import duckdb as engine

    connection = engine.connect()
    for table in tables:
        connection.execute(f"CREATE VIEW {table} AS SELECT * FROM '{data}/{table}/*.parquet'")
    connection.execute(f"COPY ({query}) TO '{out}' (HEADER, FORMAT csv)")


def datafusion(data: Path, query: str, out: Path, tables: list[str]) -> None:
    import datafusion as engine

    context = engine.SessionContext()
    for table in tables:
        context.register_parquet(table, f"{data}/{table}/")
    batches = context.sql(query).collect()
    # Its own writer of CSV makes a directory of many files.
    with out.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(batches[0].schema.names if batches else [])
        for batch in batches:
            writer.writerows(zip(*(column.to_pylist() for column in batch.columns)))


def polars(data: Path, query: str, out: Path, tables: list[str]) -> None:
    import polars as engine

    frames = {table: engine.scan_parquet(f"{data}/{table}/*.parquet") for table in tables}
    engine.SQLContext(frames).execute(query).sink_csv(out)


def pyspark(data: Path, query: str, out: Path, tables: list[str]) -> None:
    from pyspark.sql import SparkSession

    # All of the machine; the partitions of a shuffle by default, 200, are those of a cluster.
    builder = SparkSession.builder.master("local[*]").config("spark.sql.shuffle.partitions", "4")
    session = builder.config("spark.driver.memory", "8g").config("spark.ui.enabled", "false").getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    for table in tables:
        session.read.parquet(f"{data}/{table}").createOrReplaceTempView(table)
    result = session.sql(query)
    with out.open("w", newline="") as file:
        csv.writer(file).writerows([result.columns, *result.collect()])


if __name__ == "__main__":
    name, data, query, out, *tables = sys.argv[1:]
    engine = {"duckdb": duckdb, "datafusion": datafusion, "polars": polars, "pyspark": pyspark}[name]
    engine(Path(data), Path(query).read_text().strip().rstrip(";"), Path(out), tables)
