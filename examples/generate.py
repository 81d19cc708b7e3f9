#!/usr/bin/env python3
"""Generates the data of the examples, the same each time.

    generate.py logs DIR [LINES]       access logs, a file a day
    generate.py readings DIR [ROWS]    a small CSV file for each day and sensor
    generate.py events DIR [ORDERS]    orders' states in NDJSON, delivered more than once and out of order
    generate.py orders DIR [ROWS]      two tables to join: orders, and a tenth as many customers
"""

import json
import random
import sys
from pathlib import Path

START = 1_357_000_000  # 1 January 2013, 00:26:40 UTC
PATHS = ["/", "/search", "/cart", "/checkout", "/account", "/help"]
USERS = ["ada", "bela", "chen", "dora", "emil", "faye", "goran", "hana", "ivo", "jun"]
STATES = ["placed", "paid", "packed", "shipped", "delivered"]


def logs(out, lines):
    rng = random.Random(1)
    for day in range(3):
        with open(out / f"2013-01-0{day + 1}.log", "w") as file:
            time = START + day * 86_400
            for _ in range(lines // 3):
                # Mostly clicks, and now and then a pause.
                time += rng.choice([3, 8, 20, 45]) if rng.random() < 0.97 else rng.randrange(1_000, 4_000)
                user = rng.choice(USERS)
                status = rng.choices([200, 304, 404, 500, 503], [80, 10, 6, 3, 1])[0]
                size = 0 if status == 304 else rng.randrange(200, 40_000)
                request = f"{'POST' if rng.random() < 0.1 else 'GET'} {rng.choice(PATHS)} HTTP/1.1"
                address = f"10.0.{USERS.index(user)}.{rng.randrange(1, 9)}"
                file.write(f'{time} {address} {user} "{request}" {status} {size}\n')


def readings(out, rows):
    rng = random.Random(2)
    for day in range(1, 5):
        folder = out / f"day=2013-01-0{day}"
        folder.mkdir()
        for sensor in range(6):
            with open(folder / f"sensor-{sensor}.csv", "w") as file:
                file.write("sensor,minute,degrees\n")
                for n in range(rows // 24):
                    degrees = f"{20 + sensor + rng.random():.2f}" if rng.random() < 0.95 else ""
                    file.write(f"{sensor},{n * 60},{degrees}\n")


def events(out, orders):
    rng = random.Random(3)
    lines = []
    for order in range(orders):
        for version in range(rng.randrange(1, len(STATES) + 1)):
            line = json.dumps({"order": order, "version": version, "state": STATES[version]})
            lines += [line] * (2 if rng.random() < 0.3 else 1)
    rng.shuffle(lines)
    for part in range(3):
        with open(out / f"{part}.ndjson", "w") as file:
            file.writelines(line + "\n" for line in lines[part::3])


def orders(out, rows):
    customers = max(rows // 10, 1)
    with open(out / "customers.csv", "w") as file:
        file.write("customer,country\n")
        file.writelines(f"{n},country-{n % 7}\n" for n in range(customers))
    with open(out / "orders.csv", "w") as file:
        file.write("number,customer,cents\n")
        file.writelines(f"{n},{n * 7919 % customers},{n % 1000}\n" for n in range(rows))


KINDS = {"logs": (logs, 600), "readings": (readings, 24 * 24), "events": (events, 150), "orders": (orders, 1_000_000)}


def main():
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in KINDS:
        sys.exit(__doc__.strip())
    generate, size = KINDS[sys.argv[1]]
    out = Path(sys.argv[2])
    out.mkdir(parents=True)
    generate(out, int(sys.argv[3]) if len(sys.argv) == 4 else size)


main()
