"""`python -m benchmarks`: both sides take turns for some rounds, then one table."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from rich.console import Console

from benchmarks.figures import FULL, QUICK, STEPS, Sizes
from benchmarks.peer import peer_python
from benchmarks.report import Round, collect, describe_machine, show
from benchmarks.side import Side
from redis_batches.embedded import EmbeddedServer


def main() -> None:
    """Measures, prints the table and writes the JSON file."""
    options = parse()
    sizes = QUICK if options.quick else FULL
    theirs_python = peer_python()
    # Never the running server that an environment variable may name: this one is emptied often.
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = Side("ours", "redis_batches", Path(sys.executable), server, folder)
        theirs = Side("theirs", "celery_batches", theirs_python, server, folder)
        sides = (ours, theirs)
        machine = describe_machine(server.url, {side.name: side.versions() for side in sides})
        rounds = measure(sides, sizes, options.rounds)
    values = collect(rounds["ours"], rounds["theirs"])
    show(Console(), machine, values)
    if options.json:
        report = {"machine": machine, "sizes": asdict(sizes), "figures": values}
        options.json.write_text(json.dumps(report, indent=2) + "\n", "utf-8")


def parse() -> argparse.Namespace:
    """Returns the options of the command line."""
    parser = argparse.ArgumentParser("benchmarks", description="Both libraries, side by side.")
    parser.add_argument("--rounds", type=int, help="turns of each side (default: 3, quick: 2)")
    parser.add_argument("--quick", action="store_true", help="few requests: rough figures")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every value to a file")
    options = parser.parse_args()
    if options.rounds is None:
        options.rounds = 2 if options.quick else 3
    if options.rounds < 1:
        parser.error("--rounds has to be at least 1")
    return options


def measure(sides: tuple[Side, ...], sizes: Sizes, count: int) -> dict[str, list[Round]]:
    """Returns what each side measured, round by round; after each step it is the other's turn."""
    rounds: dict[str, list[Round]] = {side.name: [] for side in sides}
    with Console(stderr=True).status("") as status:
        for number in range(1, count + 1):
            measured: dict[str, Round] = {side.name: {} for side in sides}
            for step in STEPS:
                for side in sides:
                    status.update(f"round {number} of {count}: {step.__name__}, {side.name}")
                    side.reset()
                    measured[side.name].update(step(side, sizes))
            for side in sides:
                rounds[side.name].append(measured[side.name])
    return rounds


if __name__ == "__main__":
    main()
