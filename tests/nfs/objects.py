#!/usr/bin/env python3
"""Serves objects on port 9000: 943 below `mixed/`, some of them large enough to come in parts, and 800 of text below `text/`; or
with "tiny" 4,800 of 100 bytes below one prefix, and as many below 48: objects.py ADDRESS [tiny]"""

import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "support"))
from objects_server import Server

MIB = 1 << 20


def objects() -> dict[str, bytes]:
    made = random.Random(1)
    sizes = {f"small/{n:04}": 16 << 10 for n in range(900)}
    sizes |= {f"whole/{n:02}": MIB for n in range(40)} | {f"parts/{n}": 40 * MIB for n in range(3)}
    mixed = {f"mixed/{key}": made.randbytes(size) for key, size in sizes.items()}
    words = [f"word{n}" for n in range(2000)]
    lines = lambda: "".join(" ".join(made.choices(words, k=10)) + "\n" for _ in range(50))
    return mixed | {f"text/{n:03}.txt": lines().encode() for n in range(800)}


def tiny() -> dict[str, bytes]:
    keys = [key for n in range(4800) for key in (f"flat/{n:04}", f"deep/{n // 100:02}/{n:04}")]
    return {key: key.ljust(100).encode() for key in keys}


if __name__ == "__main__":
    server = Server((sys.argv[1], 9000), tiny() if sys.argv[2:] else objects())
    print("ready", flush=True)
    server.serve_forever()
