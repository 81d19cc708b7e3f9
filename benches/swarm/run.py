#!/usr/bin/env python3
"""What a coordinator with very many workers takes: one command, one table. See benches/README.md."""

import argparse
import os
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TARGET = Path(os.environ.get("CARGO_TARGET_DIR") or ROOT / "target") / "release"
JOB = """\
name = "swarm"
[dataset]
source = "file://{source}"
[command]
argv = ["true"]
[split]
by = "bytes"
count = {tasks}
[workers]
fleet = "external"
count = {workers}
slots = 1
"""


def used(pid: int) -> tuple[float, float]:
    """CPU seconds of a process, and its peak memory in MiB."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    cpu = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    peak = next(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM"))
    return cpu, int(peak.split()[1]) / 1024


def row(options: argparse.Namespace, workers: int, tasks: int, millis: int) -> str:
    with tempfile.TemporaryDirectory() as place:
        place = Path(place)
        (place / "source").mkdir()
        (place / "source/lines").write_text("x\n" * tasks)
        job = place / "job.toml"
        job.write_text(JOB.format(source=place / "source", tasks=tasks, workers=workers))
        volume = place / "volume"
        command = [options.forebay, "--quiet", "--volume", volume, "--listen", "127.0.0.1", "run", job, "--id", "r"]
        coordinator = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not (volume / "runs/r/epochs/1/link.json").exists():
            time.sleep(0.01)
        before, _ = used(coordinator.pid)
        begun = time.monotonic()
        swarm = subprocess.Popen([options.swarm, volume, "r", str(workers), str(millis)], stdout=subprocess.PIPE, text=True)
        last = (0.0, 0.0)
        while coordinator.poll() is None:
            try:
                last = used(coordinator.pid)
            except (OSError, StopIteration):
                pass
            time.sleep(0.02)
        wall = time.monotonic() - begun
        said = swarm.communicate(timeout=60)[0].strip()
        if coordinator.returncode or " 0 workers" not in f" {said}":
            return f"| {workers:,} | {tasks:,} | {millis} | failed: code {coordinator.returncode}, {said} |"
        cpu, peak = last[0] - before, last[1]
        ideal = tasks * millis / 1000 / workers
        return (
            f"| {workers:,} | {tasks:,} | {millis} | {wall:.1f} | {wall / ideal:.2f} | {cpu:.1f} | {cpu / wall:.2f} "
            f"| {cpu / tasks * 1e6:.0f} | {peak:.0f} |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--forebay", default=TARGET / "forebay", type=Path)
    parser.add_argument("--swarm", default=TARGET / "examples/swarm", type=Path)
    options = parser.parse_args()
    print("| workers | tasks | ms each | wall s | of the ideal | coordinator's CPU s | of one core | µs a task | peak MiB |")
    print("|---:|---:|---:|---:|---:|---:|---:|---:|---:|")
    for workers, tasks, millis in [(100, 20_000, 100), (1000, 20_000, 1000), (1000, 2_000, 30_000)]:
        print(row(options, workers, tasks, millis), flush=True)


if __name__ == "__main__":
    main()
