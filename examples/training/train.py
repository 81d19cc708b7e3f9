"""Least squares by gradient descent, on as many ranks as the gang has members: a training in small.

Each rank reads its own part of the points. In each step the gradients of all are added up, in the order of the ranks, so
that the model is the same to the last bit however often the gang began again. Frameworks do the same by the same variables:
`torch.distributed.init_process_group()` reads RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT as this program does.
"""

import csv
import json
import os
import socket
import struct
import time
from pathlib import Path

RANK, SIZE = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
STEPS = int(os.environ.get("FOREBAY_PARAM_STEPS", "2000"))
CHECKPOINT = Path(os.environ["FOREBAY_CHECKPOINT_DIR"]) / "state.json"
RATE = 0.3
PATIENCE = 60


class Gang:
    """The ranks, each with a connection to the first one."""

    def __init__(self):
        place = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if RANK == 0:
            with socket.create_server(("", place[1])) as server:
                server.settimeout(PATIENCE)
                come = [server.accept()[0] for _ in range(SIZE - 1)]
            ranks = {struct.unpack("!I", peer.recv(4, socket.MSG_WAITALL))[0]: peer for peer in come}
            self.peers = [ranks[rank] for rank in range(1, SIZE)]
        else:
            self.peers = [connect(place)]
            self.peers[0].sendall(struct.pack("!I", RANK))
        for peer in self.peers:
            peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def from_first(self, values):
        """What the first rank has, for all."""
        if RANK == 0:
            for peer in self.peers:
                send(peer, values)
            return values
        return receive(self.peers[0], len(values))

    def sum(self, values):
        """Of all ranks, in their order."""
        if RANK == 0:
            for peer in self.peers:
                values = [own + theirs for own, theirs in zip(values, receive(peer, len(values)))]
        else:
            send(self.peers[0], values)
        return self.from_first(values)


def connect(place):
    """The first rank may take a while to begin."""
    patience = time.monotonic() + PATIENCE
    while True:
        try:
            return socket.create_connection(place)
        except ConnectionRefusedError:
            if time.monotonic() > patience:
                raise
            time.sleep(0.05)


def send(peer, values):
    peer.sendall(struct.pack(f"!{len(values)}d", *values))


def receive(peer, count):
    bytes = peer.recv(8 * count, socket.MSG_WAITALL)
    if len(bytes) < 8 * count:
        raise ConnectionError("a rank has gone")
    return list(struct.unpack(f"!{count}d", bytes))


def points():
    for path in Path(os.environ["FOREBAY_INPUTS"]).read_text().splitlines():
        with open(path, newline="") as file:
            for row in csv.DictReader(file):
                yield (1.0, float(row["x"]), float(row["z"])), float(row["y"])


def save(step, weights):
    new = CHECKPOINT.with_suffix(".new")
    new.write_text(json.dumps({"step": step, "weights": weights}))
    new.rename(CHECKPOINT)


def main():
    gang, mine = Gang(), list(points())
    step, weights = 0, [0.0, 0.0, 0.0]
    if RANK == 0 and CHECKPOINT.exists():
        state = json.loads(CHECKPOINT.read_text())
        step, weights = state["step"], state["weights"]
    # What one rank has read all begin with: the others may see the file later.
    first, *weights = gang.from_first([float(step), *weights])
    print(f"rank {RANK} of {SIZE} begins at step {first:.0f}", flush=True)
    for step in range(int(first), STEPS):
        gradient, loss = [0.0, 0.0, 0.0], 0.0
        for features, label in mine:
            error = sum(weight * feature for weight, feature in zip(weights, features)) - label
            gradient = [part + error * feature for part, feature in zip(gradient, features)]
            loss += error * error
        *gradient, loss, count = gang.sum([*gradient, loss, float(len(mine))])
        weights = [weight - RATE * part / count for weight, part in zip(weights, gradient)]
        if RANK == 0 and step % 100 == 99:
            save(step + 1, weights)
    if RANK == 0:
        output = Path(os.environ["FOREBAY_OUTPUT_DIR"])
        (output / "model.json").write_text(json.dumps({"weights": weights}))
        (output / "metrics.json").write_text(json.dumps({"loss": loss / count}))


main()
