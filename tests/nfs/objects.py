#!/usr/bin/env python3
"""Serves on port 9000 943 objects, some of them large enough to come in parts, or with "tiny" 4,800 objects of 100 bytes below
one prefix, and as many below 48: objects.py ADDRESS [tiny]"""

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
    return {key: made.randbytes(size) for key, size in sizes.items()}


def tiny() -> dict[str, bytes]:
    keys = [key for n in range(4800) for key in (f"flat/{n:04}", f"deep/{n // 100:02}/{n:04}")]
    return {key: key.ljust(100).encode() for key in keys}


if __name__ == "__main__":
    server = Server((sys.argv[1], 9000), tiny() if sys.argv[2:] else objects())
    print("ready", flush=True)
    server.serve_forever()
