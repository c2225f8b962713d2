"""Breaks the code in many ways, one at a time, and shows which test catches each.

    python -m tests.mutants --jobs 2
    python -m tests.mutants ack-unfenced 17

It ends with 1 if a mutant survives, or does not fit the code any more.
"""

from __future__ import annotations

import argparse
import queue
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from tests.mutants.catalogue import Misfit, Mutant, load
from tests.mutants.trial import copy_tree, run


def main(argv: Sequence[str] | None = None) -> int:
    """Tries mutants, and prints a line for each."""
    options = _parse(argv)
    numbered = list(enumerate(load(), 1))
    wanted = [
        (number, mutant)
        for number, mutant in numbered
        if not options.mutants or _names(number, mutant) & {*options.mutants}
    ]
    unknown = {*options.mutants}.difference(*(_names(*each) for each in wanted))
    if unknown:
        sys.exit(f"no such mutant: {', '.join(sorted(unknown))}")
    if options.list:
        for number, mutant in wanted:
            print(_line(number, mutant))
        return 0
    return _try_all(wanted, options)


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutants", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument(
        "mutants", nargs="*", help="numbers, names, definitions or files; all by default"
    )
    parser.add_argument("--jobs", type=int, default=1, help="at a time (default: %(default)s)")
    parser.add_argument("--list", action="store_true", help="print them, and try none")
    parser.add_argument("--quick", action="store_true", help="without tests on real workers")
    parser.add_argument(
        "--no-baseline",
        dest="baseline",
        action="store_false",
        help="do not first see the tests pass without a mutant",
    )
    return parser.parse_args(argv)


def _try_all(wanted: Sequence[tuple[int, Mutant]], options: argparse.Namespace) -> int:
    started, bad, jobs = time.monotonic(), list[str](), options.jobs
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        trees: queue.SimpleQueue[Path] = queue.SimpleQueue()
        for job in range(jobs):
            copy_tree(Path(folder) / str(job))
            trees.put(Path(folder) / str(job))

        def attempt(mutant: Mutant | None) -> tuple[str, float, bool]:
            tree = trees.get()
            try:
                verdict = run(tree, mutant, options.quick)
            except Misfit as exc:
                return f"DOES NOT FIT: {exc}", 0.0, False
            finally:
                trees.put(tree)
            if verdict.caught_by:
                return f"CAUGHT by {verdict.caught_by}", verdict.seconds, True
            return "SURVIVED", verdict.seconds, False

        if options.baseline:
            said, seconds, failed = attempt(None)
            if failed:
                print(f"without a mutant the tests do not pass: {said}")
                return 2
            print(f"the tests pass without a mutant; {seconds:.1f} s", flush=True)
        with ThreadPoolExecutor(jobs) as pool:
            tried = pool.map(attempt, [mutant for _, mutant in wanted])
            for (number, mutant), (said, seconds, good) in zip(wanted, tried, strict=True):
                print(f"{_line(number, mutant)}  {said}  {seconds:.1f} s", flush=True)
                if not good:
                    bad.append(mutant.name)
    print(
        f"{len(wanted)} mutants, {len(wanted) - len(bad)} caught, {len(bad)} not, "
        f"in {time.monotonic() - started:.0f} s{': ' if bad else ''}{', '.join(bad)}"
    )
    return 1 if bad else 0


def _names(number: int, mutant: Mutant) -> set[str]:
    """What a mutant may be called on the command line."""
    names = {str(number), mutant.name, mutant.definition}
    with suppress(Misfit):
        names.add(mutant.find().file)
    return names


def _line(number: int, mutant: Mutant) -> str:
    return f"{number:3}  {mutant.name:22}  {mutant.definition:27}  {mutant.what}"


if __name__ == "__main__":
    sys.exit(main())
