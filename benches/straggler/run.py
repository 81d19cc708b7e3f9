#!/usr/bin/env python3
"""What a slow worker does to a run's end, with and without speculation and re-splitting: one command, one table. See benches/README.md."""

import argparse
import json
import os
import signal
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release"
TASKS, SECONDS = 60, 0.25
JOB = """\
name = "straggler"
reuse = "off"
[dataset]
source = "file://{source}"
[command]
shell = "sleep $PACE"
[split]
by = "bytes"
count = {tasks}
[workers]
fleet = "external"
count = 4
[retry]
speculate = {speculate}
"""


def run(forebay: Path, slower: float, speculate: bool) -> tuple[float, int]:
    """Wall seconds with four workers of a slot each, of which one is so many times slower; and attempts."""
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        (place / "source").mkdir()
        (place / "source/lines").write_text("x\n" * TASKS)
        job = place / "job.toml"
        job.write_text(JOB.format(source=place / "source", tasks=TASKS, speculate=str(speculate).lower()))
        base = [forebay, "--quiet", "--volume", place / "volume"]
        command = [*base, "--listen", "127.0.0.1", "run", job, "--id", "r", "--json"]
        coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        while not (place / "volume/runs/r/epochs/1/link.json").exists():
            time.sleep(0.005)
        begun = time.monotonic()
        paces = [SECONDS, SECONDS, SECONDS, SECONDS * slower]
        workers = [
            subprocess.Popen([*base, "worker", "--run", "r", "--slots", "1"], env=os.environ | {"PACE": str(pace)})
            for pace in paces
        ]
        said = coordinator.communicate(timeout=600)[0]
        wall = time.monotonic() - begun
        for worker in workers:
            worker.wait(timeout=60)
        result = json.loads(said)
        assert result["tasks"]["succeeded"] == TASKS, result
        return wall, result["tasks"]["attempts"]


WORDS = """\
name = "straggler"
reuse = "off"
[dataset]
source = "file://{source}"
[mapreduce]
map = "word-count"
[split]
count = {splits}
[workers]
fleet = "external"
count = 2
[retry]
speculate = {speculate}
resplit = {resplit}
"""
LINE, BYTES, SPLITS = "one two three four five six seven eight\n", 4 << 30, 16


class Throttled(threading.Thread):
    """Lets a process run for so small a part of the time."""

    def __init__(self, process: subprocess.Popen, slower: float):
        super().__init__(daemon=True)
        self.process, self.slower, self.over = process, slower, threading.Event()

    def run(self) -> None:
        while not self.over.is_set():
            for order, seconds in [(signal.SIGSTOP, 0.01 * (self.slower - 1)), (signal.SIGCONT, 0.01)]:
                self.process.send_signal(order)
                time.sleep(seconds)


def words(forebay: Path, source: Path, slower: float, speculate: bool, resplit: bool) -> tuple[float, int]:
    """Wall seconds from the first task on, with two workers of a slot each, one of them slower; and attempts."""
    with tempfile.TemporaryDirectory(dir=source.parent) as place:
        place = Path(place)
        base = [forebay, "--quiet", "--volume", source.parent / "volume"]
        job, run = place / "job.toml", place.name
        shown = {"speculate": str(speculate).lower(), "resplit": str(resplit).lower()}
        job.write_text(WORDS.format(source=source, splits=SPLITS, **shown))
        command = [*base, "--listen", "127.0.0.1", "run", job, "--id", run, "--json"]
        coordinator = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        run_dir = source.parent / "volume/runs" / run
        while not (run_dir / "plan.ndjson").exists():
            time.sleep(0.005)
        worker = [*base, "worker", "--run", run, "--slots", "1", "--name"]
        begun = time.monotonic()
        slow = subprocess.Popen([*worker, "slow"])
        while not (run_dir / "slots/slow.0").exists():
            time.sleep(0.001)
        throttled = Throttled(slow, slower)
        throttled.start()
        fast = subprocess.Popen([*worker, "fast"])
        result = json.loads(coordinator.communicate(timeout=600)[0])
        wall = time.monotonic() - begun
        throttled.over.set()
        throttled.join()
        for process in [slow, fast]:
            process.wait(timeout=60)
        assert result["state"] == "succeeded" and result["output"]["rows"] == 8, result
        return wall, result["tasks"]["attempts"]


def words_table(forebay: Path, runs: int, scratch: Path | None) -> None:
    """Of a text of 4 GiB in 16 splits, which is in memory after the first run."""
    print("\n| one of two workers is slower | speculate | resplit | wall s | attempts |\n|---:|---|---|---:|---:|")
    with tempfile.TemporaryDirectory(dir=scratch) as place:
        source = Path(place) / "source"
        source.mkdir()
        with open(source / "words.txt", "w") as file:
            for _ in range(BYTES >> 20):
                file.write(LINE * ((1 << 20) // len(LINE)))
        words(forebay, source, 1.0, False, False)
        for slower in [20, 100]:
            for speculate, resplit in [(False, False), (True, False), (False, True), (True, True)]:
                done = [words(forebay, source, slower, speculate, resplit) for _ in range(runs)]
                wall, attempts = (statistics.median(figures) for figures in zip(*done))
                shown = [str(slower) + " times", str(speculate).lower(), str(resplit).lower()]
                print(f"| {' | '.join(shown)} | {wall:.1f} | {attempts:.0f} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forebay", default=TARGET / "forebay", type=Path)
    parser.add_argument("--runs", default=3, type=int)
    parser.add_argument("--scratch", type=Path, help="where 10 GB go")
    options = parser.parse_args()
    print("| one of four workers is slower | speculate | wall s | attempts |\n|---:|---|---:|---:|")
    for slower in [1, 20, 100]:
        for speculate in [False, True]:
            runs = [run(options.forebay, slower, speculate) for _ in range(options.runs)]
            wall, attempts = (statistics.median(figures) for figures in zip(*runs))
            print(f"| {slower} times | {str(speculate).lower()} | {wall:.1f} | {attempts:.0f} |", flush=True)
    words_table(options.forebay, options.runs, options.scratch)


if __name__ == "__main__":
    main()
