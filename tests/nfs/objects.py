#!/usr/bin/env python3
"""Serves 943 objects, some of them large enough to come in parts, on port 9000: objects.py ADDRESS"""

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


if __name__ == "__main__":
    server = Server((sys.argv[1], 9000), objects())
    print("ready", flush=True)
    server.serve_forever()
