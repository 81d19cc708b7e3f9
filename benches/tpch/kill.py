"""Kills a worker in the middle of a query that several execute."""

import os
import random
import signal
import subprocess
import time
from pathlib import Path


def killed_in(argv: list[str], run: Path, stage: int | None, choose: random.Random, timeout: float) -> int:
    """Runs a whole command, and kills one of its workers, with all that it has started, as soon as so many stages of the
    query have begun to write; or none. Gives how many did."""
    began = time.monotonic()
    child = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, start_new_session=True)
    seen: set[Path] = set()
    try:
        while child.poll() is None:
            if time.monotonic() - began > timeout:
                raise RuntimeError(f"no end after {timeout:.0f} s")
            seen.update(stages(run / "shuffle"))
            if stage is not None and len(seen) >= stage:
                os.killpg(choose.choice(workers(child.pid)), signal.SIGKILL)
                stage = None
            time.sleep(0.001)
        if child.returncode != 0:
            raise RuntimeError(f"it ended with {child.returncode}: {child.stderr.read().strip()[-400:]}")
        return len(seen)
    finally:
        # Its workers end with it.
        child.kill()
        child.wait()


def stages(shuffle: Path) -> list[Path]:
    """The stages that are, or were, at work."""
    try:
        return [stage for job in shuffle.iterdir() for stage in job.iterdir()]
    except FileNotFoundError:  # Nothing yet, or just removed.
        return []


def workers(coordinator: int) -> list[int]:
    """The workers that a coordinator on this host has started: each leads a group of its own."""
    children = []
    for thread in Path(f"/proc/{coordinator}/task").iterdir():
        children += map(int, (thread / "children").read_text().split())
    return sorted(pid for pid in children if leads(pid))


def leads(pid: int) -> bool:
    try:
        return os.getpgid(pid) == pid
    except ProcessLookupError:
        return False
