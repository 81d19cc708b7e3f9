#!/usr/bin/env python3
"""What it saves that tasks start while the rest is staged: a run whose staging and work take equally long."""

import argparse
import hashlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "support"))
from objects_server import Server

MIB = 1 << 20
# Few, so that starting them is little of their time.
TASKS = 32
JOB = """\
name = "early"
reuse = "off"
[dataset]
source = "s3://bucket/"
early_start = {early}
[command]
argv = ["{python}", "{work}", "{rounds}"]
[split]
by = "file"
count = {tasks}
[workers]
count = 1
slots = {slots}
"""
# Reads its inputs that often, as a training or a scoring does that computes more than it reads.
WORK = """\
import hashlib, os, sys
for path in open(os.environ["FOREBAY_INPUTS"]).read().splitlines():
    data = open(path, "rb").read()
    for _ in range(int(sys.argv[1])):
        digest = hashlib.sha256(data).hexdigest()
    with open(os.path.join(os.environ["FOREBAY_OUTPUT_DIR"], "digest"), "a") as out:
        print(digest, file=out)
"""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--forebay", type=Path, default=ROOT / "target/release/forebay", help="the program to measure")
    parser.add_argument("--runs", type=int, default=5, help="how often each way is measured")
    parser.add_argument("--objects", type=int, default=256, help="of 8 MiB each, in 32 tasks")
    parser.add_argument("--seconds", type=float, default=20, help="that staging is to take, and so the work")
    parser.add_argument("--out", type=Path, help="the file system to work on; a new directory in it is used")
    return parser.parse_args()


def main() -> int:
    args = arguments()
    scratch = Path(tempfile.mkdtemp(prefix="early-", dir=args.out))
    try:
        return compare(args, scratch)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def compare(args: argparse.Namespace, scratch: Path) -> int:
    size, slots = 8 * MIB, max(1, os.cpu_count() - 1)
    objects = {f"{n:04}.bin": os.urandom(size) for n in range(args.objects)}
    begun = time.perf_counter()
    for content in list(objects.values())[:4]:
        hashlib.sha256(content).digest()
    once = (time.perf_counter() - begun) / 4
    rounds = max(1, round(args.seconds * slots / args.objects / once))
    (scratch / "work.py").write_text(WORK)
    with Server(("127.0.0.1", 0), objects, args.objects * size / args.seconds) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment = {
            **os.environ,
            "AWS_ENDPOINT_URL_S3": server.endpoint,
            "AWS_ACCESS_KEY_ID": "any",
            "AWS_SECRET_ACCESS_KEY": "any",
            "AWS_REGION": "us-east-1",
        }

        def run(volume: Path, early: bool) -> tuple[float, dict]:
            job = scratch / f"{early}.toml"
            fields = {"python": sys.executable, "work": scratch / "work.py", "rounds": rounds, "slots": slots, "tasks": TASKS}
            job.write_text(JOB.format(early=str(early).lower(), **fields))
            command = [args.forebay, "--volume", volume, "--quiet", "run", job, "--json"]
            begun = time.perf_counter()
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            return time.perf_counter() - begun, json.loads(done.stdout)

        ways: dict[str, list[float]] = {"staging": [], "work": [], "one after the other": [], "early start": []}
        for turn in range(args.runs):
            for early in [False, True] if turn % 2 == 0 else [True, False]:
                volume = scratch / f"{turn}-{early}"
                seconds, result = run(volume, early)
                ways["early start" if early else "one after the other"].append(seconds)
                if not early:
                    ways["staging"].append(result["staged"]["seconds"])
                    # The same once more, of what is staged: the work alone.
                    ways["work"].append(run(volume, early)[0])
                shutil.rmtree(volume)
            print(f"{turn + 1}/{args.runs}: " + ", ".join(f"{k} {v[-1]:.2f} s" for k, v in ways.items()), file=sys.stderr)
        server.shutdown()
    medians = {way: statistics.median(seconds) for way, seconds in ways.items()}
    print(f"{args.objects} objects of 8 MiB, {TASKS} tasks, {slots} at a time; medians of {args.runs}\n")
    print("| | seconds |\n|---|---|")
    for way, seconds in medians.items():
        print(f"| {way} | {seconds:.2f} |")
    saved = 1 - medians["early start"] / medians["one after the other"]
    print(f"\nsaved: {saved:.0%}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
