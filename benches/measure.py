"""What benchmarks share. Runs a whole command and tells what it took, with all that it starts, however it is started.

A program of its own, `measure.py REPORT SECONDS COMMAND...`, because it becomes the parent of what the command leaves
behind, and because what the kernel reports as a child's peak memory begins with that of the process it was forked from.
"""

import ctypes
import json
import os
import resource
import select
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
SUBREAPER = 36  # PR_SET_CHILD_SUBREAPER, prctl(2)
# Between two samples of the first process's own time; the last one before its end is the figure.
SAMPLE = 0.005


def cache(bench: str) -> Path:
    """Where a benchmark keeps what it makes once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "forebay" / "bench" / bench


def python(wanted: Path, venv: Path) -> str:
    """Of a set of packages, installed once."""
    installed = venv / "installed.txt"
    if not installed.exists() or installed.read_text() != wanted.read_text():
        subprocess.run([sys.executable, "-m", "venv", venv], check=True)
        pip = [venv / "bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check", "-r", wanted]
        subprocess.run(pip, check=True)
        installed.write_text(wanted.read_text())
    return str(venv / "bin/python")


def whole(argv: list[str], scratch: Path, timeout: float) -> dict[str, float]:
    """Seconds of wall time and CPU, CPU seconds of the command's first process, and MiB of the largest process."""
    report = scratch / "report.json"
    launcher = [sys.executable, "-I", "-S", str(Path(__file__).resolve()), str(report), str(timeout)]
    os.sync()
    said = subprocess.run([*launcher, *argv], stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=scratch)
    figures = json.loads(report.read_text()) if report.exists() else {"code": said.returncode}
    if figures["code"] != 0:
        raise RuntimeError(f"it ended with {figures['code']}: {said.stderr.strip()[-400:]}")
    return figures


def main() -> None:
    report, timeout, *argv = sys.argv[1:]
    ctypes.CDLL(None, use_errno=True).prctl(SUBREAPER, 1, 0, 0, 0)
    began = time.monotonic()
    child = subprocess.Popen(argv, start_new_session=True)
    end = select.poll()
    end.register(os.pidfd_open(child.pid), select.POLLIN)
    own, ticks = 0, os.sysconf("SC_CLK_TCK")
    while not (ended := end.poll(SAMPLE * 1000)) and time.monotonic() - began < float(timeout):
        try:
            stat = Path(f"/proc/{child.pid}/stat").read_text().rsplit(")", 1)[1].split()
            own = max(own, (int(stat[11]) + int(stat[12])) / ticks)
        except (OSError, IndexError):
            pass
    wall = time.monotonic() - began
    code = child.wait() if ended else "a time-out"
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass
    # What it left behind may be ending.
    while time.monotonic() - began < wall + 5:
        try:
            if os.waitpid(-1, os.WNOHANG) == (0, 0):
                time.sleep(0.05)
        except ChildProcessError:
            break
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = used.ru_utime + used.ru_stime
    figures = {"code": code, "wall": wall, "own": own, "cpu": cpu, "peak": used.ru_maxrss / 1024}
    Path(report).write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
