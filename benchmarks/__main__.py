"""`python -m benchmarks`: measures one section after the other, and prints one report."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.status import Status

from benchmarks import picture, report
from benchmarks.bench import Bench, Section
from benchmarks.peer import peer_python
from benchmarks.sections import SECTIONS
from benchmarks.sections.compare import SECTION as COMPARE
from benchmarks.side import Side
from benchmarks.sizes import FULL, QUICK, Sizes
from benchmarks.values import Values
from redis_batches.testing.server import EmbeddedServer


def main() -> None:
    """Measures, prints the tables and writes the files."""
    options = parse(sys.argv[1:])
    sizes = QUICK if options.quick else FULL
    measured: dict[Section, Values] = {}
    for machine in measure(options.sections, sizes, options.rounds, measured):
        machine["command"] = shlex.join(("sh", "run.sh", "bench", *sys.argv[1:]))
        # After each section: one that fails takes nothing along.
        if options.save:
            save(options.save, machine, sizes, measured)
    console = Console()
    if console.width < report.WIDTH:
        console = Console(width=report.WIDTH)
    report.show(console, machine, measured)


def parse(arguments: list[str]) -> argparse.Namespace:
    """Returns the options of the command line."""
    names = {section.name: section for section in SECTIONS}
    parser = argparse.ArgumentParser("sh run.sh bench", description="Measures and compares.")
    parser.add_argument("--rounds", type=int, help="of each measurement (default: 3, quick: 1)")
    parser.add_argument("--quick", action="store_true", help="few requests: rough figures")
    parser.add_argument("--only", nargs="+", choices=names, help="some sections")
    parser.add_argument(
        "--save", type=Path, metavar="FOLDER", help="write figures.json, figures.svg, tables.md"
    )
    options = parser.parse_args(arguments)
    if options.rounds is None:
        options.rounds = 1 if options.quick else 3
    if options.rounds < 1:
        parser.error("--rounds has to be at least 1")
    options.sections = [names[name] for name in names if name in (options.only or names)]
    return options


def measure(
    sections: list[Section], sizes: Sizes, rounds: int, measured: dict[Section, Values]
) -> Iterator[dict[str, str]]:
    """Adds what each section measures; yields after each what the figures depend on."""
    theirs_python = peer_python()
    waiting = Console(stderr=True)
    # Never the running server that an environment variable may name: this one is emptied often.
    with EmbeddedServer() as server, tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ours = Side("ours", "redis_batches", Path(sys.executable), server, folder)
        theirs = Side("theirs", "celery_batches", theirs_python, server, folder)
        sides = (ours, theirs)
        machine = report.describe_machine(server.url, {s.name: s.versions() for s in sides})
        for section in sections:
            with waiting.status("") as status:
                say = partial(_say, status, section.name)
                values = Values()
                section.measure(Bench(server, sides, sizes, rounds, say), values)
            measured[section] = values
            ours.reset()
            yield machine


def _say(status: Status, section: str, what: str) -> None:
    status.update(f"{section}: {what}")


def save(
    folder: Path, machine: dict[str, str], sizes: Sizes, measured: dict[Section, Values]
) -> None:
    """Writes what was measured: every value, the tables, and if there is one the picture."""
    folder.mkdir(parents=True, exist_ok=True)
    found = report.as_json(machine, asdict(sizes), measured)
    (folder / "figures.json").write_text(json.dumps(found, indent=2) + "\n", "utf-8")
    (folder / "tables.md").write_text(report.markdown(machine, measured), "utf-8")
    if COMPARE in measured:
        drawn = picture.draw(picture.bars_of(measured[COMPARE]), machine["processor"])
        (folder / "figures.svg").write_text(drawn, "utf-8")


if __name__ == "__main__":
    main()
