"""One row by DuckDB or Polars: TOOL WORK OUT FILE…; the result as CSV, as all tools of the table leave it."""

import sys

NEEDLE = "Quito;"


def duckdb_row(work: str, out: str, files: list[str]) -> None:
    import duckdb

    # A line is one column: the delimiter is a byte that text does not hold.
    options = "columns = {'line': 'VARCHAR'}, auto_detect = false, header = false, delim = '\x01', quote = '', escape = ''"
    lines = f"read_csv({files!r}, filename = true, {options})"
    query = {
        "words": f"SELECT word, count(*) AS count FROM (SELECT unnest(string_split(line, ' ')) AS word FROM {lines}) "
        "GROUP BY word ORDER BY word",
        "lines": f"SELECT filename AS key, count(*) AS lines FROM {lines} GROUP BY filename ORDER BY filename",
        "grep": f"SELECT filename AS key, line FROM {lines} WHERE contains(line, '{NEEDLE}')",
        "stations": "SELECT station, min(t) AS min, avg(t) AS mean, max(t) AS max FROM "
        f"read_csv({files!r}, columns = {{'station': 'VARCHAR', 't': 'DOUBLE'}}, auto_detect = false, header = false, delim = ';') "
        "GROUP BY station ORDER BY station",
    }[work]
    duckdb.sql(f"COPY ({query}) TO '{out}' (HEADER)")


def polars_row(work: str, out: str, files: list[str]) -> None:
    import polars as pl

    lines = pl.scan_csv(
        files, has_header=False, separator="\x01", quote_char=None, schema={"line": pl.String}, include_file_paths="key"
    )
    line = pl.col("line")
    match work:
        case "words":
            words = lines.select(line.str.split(" ").alias("word")).explode("word")
            result = words.group_by("word").agg(pl.len().alias("count")).sort("word")
        case "lines":
            result = lines.group_by("key").agg(pl.len().alias("lines")).sort("key")
        case "stations":
            t = pl.col("t")
            table = pl.scan_csv(files, has_header=False, separator=";", schema={"station": pl.String, "t": pl.Float64})
            result = table.group_by("station").agg(t.min().alias("min"), t.mean().alias("mean"), t.max().alias("max")).sort("station")
        case _:
            result = lines.filter(line.str.contains(NEEDLE, literal=True)).select("key", "line")
    result.sink_csv(out)


if __name__ == "__main__":
    tool, work, out, *files = sys.argv[1:]
    {"duckdb": duckdb_row, "polars": polars_row}[tool](work, out, files)
