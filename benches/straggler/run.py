#!/usr/bin/env python3
"""What a slow worker does to a run's end, with speculation and without: one command, one table. See benches/README.md."""

import argparse
import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release"
TASKS, SECONDS = 60, 0.25
JOB = """\
name = "straggler"
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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forebay", default=TARGET / "forebay", type=Path)
    parser.add_argument("--runs", default=3, type=int)
    options = parser.parse_args()
    print("| one of four workers is slower | speculate | wall s | attempts |\n|---:|---|---:|---:|")
    for slower in [1, 20, 100]:
        for speculate in [False, True]:
            runs = [run(options.forebay, slower, speculate) for _ in range(options.runs)]
            wall, attempts = (statistics.median(figures) for figures in zip(*runs))
            print(f"| {slower} times | {str(speculate).lower()} | {wall:.1f} | {attempts:.0f} |", flush=True)


if __name__ == "__main__":
    main()
