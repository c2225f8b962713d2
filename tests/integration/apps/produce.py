"""A producer process: `python -m tests.integration.apps.produce FIRST COUNT SEED`."""

from __future__ import annotations

import random
import sys
import time

from tests.integration.apps.shop import load


def main(first: int, count: int, seed: int) -> None:
    """Calls `load` once per number, with random pauses."""
    chance = random.Random(seed)
    for number in range(first, first + count):
        load.delay(number)
        if chance.random() < 0.002:
            time.sleep(chance.random() * 0.2)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
