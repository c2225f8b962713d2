"""`python -m tests.chaos`: faults for a while, and then a look whether any call was lost."""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

from rich.console import Console

from tests.chaos.campaign import Plan, run
from tests.chaos.faults import FAULTS
from tests.chaos.ledger import FOLDER_VARIABLE
from tests.chaos.report import as_json, show


def main() -> int:
    """Runs it; returns the exit code: 0 only if nothing happened that must not."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--minutes", type=float, help="how long (default: 1)")
    length.add_argument("--faults", type=int, help="how many faults")
    length.add_argument("--requests", type=int, help="how many calls are accepted")
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--rate", type=float, default=200.0, help="calls a second in a rush")
    parser.add_argument("--every", type=float, default=1.0, help="seconds between faults, at most")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--folder", type=Path, help="a new folder in which logs and ledgers stay")
    parser.add_argument("--only", nargs="+", metavar="KIND", choices=FAULTS, help="these faults")
    parser.add_argument("--without", nargs="+", metavar="KIND", choices=FAULTS, help="not these")
    given = parser.parse_args()
    if given.minutes is given.faults is given.requests is None:
        given.minutes = 1.0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    console = Console(highlight=False)
    kinds = tuple(kind for kind in given.only or FAULTS if kind not in (given.without or ()))
    plan = Plan(
        given.seed, given.rate, given.every, given.minutes, given.faults, given.requests, kinds
    )
    if given.folder:
        given.folder.mkdir(parents=True)
    folder = given.folder or Path(tempfile.mkdtemp(prefix="redis-batches-chaos-"))
    os.environ[FOLDER_VARIABLE] = str(folder)
    console.print(f"seed {plan.seed}")
    kept = given.folder is not None
    try:
        report = run(plan, folder, console.print)
        kept = kept or not report.passed
    except KeyboardInterrupt:
        console.print("[yellow]Stopped[/]: no process is left.")
        return 128 + signal.SIGINT
    finally:
        if kept:
            console.print(f"logs and ledgers: {folder}")
        else:
            shutil.rmtree(folder, ignore_errors=True)
    show(console, report)
    if given.json:
        given.json.write_text(as_json(report, seed=plan.seed) + "\n")
    return 0 if report.passed else 1


if __name__ == "__main__":
    sys.exit(main())
