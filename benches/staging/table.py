"""The table: medians, and how they compare with s5cmd's."""

import os
import platform
import statistics
import subprocess
from datetime import date
from pathlib import Path

from data import GIB, MIB, MILLION_ROWS, Bucket
from measure import Figures
from tools import BASELINE, Tool

PEAK_GOAL = 256 * MIB
COLUMNS = ["row", "tool", "wall s", "÷ s5cmd", "CPU s", "÷ s5cmd", "CPU s by size", "peak MiB", "sync after s", "runs"]


def median(runs: list[Figures], figure: str) -> float:
    return statistics.median(getattr(run, figure) for run in runs)


def heading(versions: list[str], directory: Path, runs: int, scale: float) -> str:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / GIB
    system = f"Linux {platform.release().split('-')[0]}, {file_system(directory)}"
    note = "" if scale == 1 else f" Scale {scale:g}: not to be compared with the goals."
    return (
        f"{date.today()}, {os.cpu_count()} cores, {memory:.0f} GiB, {system}; medians of {runs}.{note}\n"
        f"{'; '.join(versions)}."
    )


def file_system(directory: Path) -> str:
    done = subprocess.run(["stat", "-f", "-c", "%T", directory], capture_output=True, text=True)
    return done.stdout.strip().replace("ext2/ext3", "ext4") or "unknown file system"


def table(tools: list[Tool], buckets: list[Bucket], results: dict[tuple[str, str], list[Figures]]) -> str:
    """In Markdown, so that it can be put into a document as it is."""
    lines = [COLUMNS, ["---", "---"] + ["---:"] * (len(COLUMNS) - 2)]
    for bucket in buckets:
        base = results.get((bucket.row.name, BASELINE))
        for tool in tools:
            runs = results.get((bucket.row.name, tool.name))
            if runs:
                lines.append([bucket.title, tool.title, *cells(bucket, runs, base)])
            elif runs is not None:
                lines.append([bucket.title, tool.title, "failed", *[""] * (len(COLUMNS) - 3)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cells(bucket: Bucket, runs: list[Figures], base: list[Figures] | None) -> list[str]:
    wall, cpu = median(runs, "wall"), median(runs, "cpu")
    against = lambda figure, own: f"{own / median(base, figure):.2f}" if base else ""
    size = bucket.bytes / GIB if bucket.row.unit == "GiB" else bucket.count / 1000
    synced = next((run.sync for run in runs if run.sync is not None), None)
    return [
        f"{wall:.2f}",
        against("wall", wall),
        f"{cpu:.2f}",
        against("cpu", cpu),
        f"{cpu / size:.3f} a {'GiB' if bucket.row.unit == 'GiB' else 'thousand'}",
        f"{median(runs, 'peak') / MIB:.0f}",
        "" if synced is None else f"{synced:.2f}",
        str(len(runs)),
    ]


def goals(tools: list[Tool], buckets: list[Bucket], results: dict[tuple[str, str], list[Figures]]) -> str:
    """What forebay is to reach, beside what it did. Says, and decides nothing."""
    lines = []
    for tool in (tool for tool in tools if tool.name.startswith("forebay")):
        for bucket in buckets:
            row, runs = bucket.row, results.get((bucket.row.name, tool.name))
            if not runs:
                continue
            told = []
            base = results.get((row.name, BASELINE))
            if base and row.goals:
                for figure, word, limit in zip(("wall", "cpu"), ("wall", "CPU"), row.goals):
                    ratio = median(runs, figure) / median(base, figure)
                    told.append(f"{word} {ratio:.2f} of {BASELINE}'s, goal {limit:.2f}: {verdict(ratio <= limit)}")
            others = [other for other in tools if not other.name.startswith("forebay")]
            ahead = [other for other in others if results.get((row.name, other.name))]
            faster = [o.title for o in ahead if median(results[row.name, o.name], "wall") < median(runs, "wall")]
            if ahead:
                told.append("ahead of every peer: " + (f"no ({', '.join(faster)})" if faster else "yes"))
            peak = max(run.peak for run in runs)
            told.append(f"peak {peak / MIB:.0f} MiB, goal 256: {verdict(peak < PEAK_GOAL)}")
            lines.append(f"- {tool.title}, {bucket.title}: {'; '.join(told)}.")
        few, many = (results.get((name, tool.name)) for name in MILLION_ROWS)
        if few and many:
            grown = median(many, "peak") / median(few, "peak")
            lines.append(f"- {tool.title}, peak of the million against the few: {grown:.2f} times, goal: flat.")
    return "\n".join(lines)


def verdict(holds: bool) -> str:
    return "yes" if holds else "no"
