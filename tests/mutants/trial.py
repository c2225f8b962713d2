"""Tries one mutant: the cheapest tests first, until one fails."""

from __future__ import annotations

import os
import queue
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from tests.mutants.catalogue import ROOT, Mutant

_NOT_COPIED = (".git", ".venv*", ".servers", ".hypothesis", "*cache*", "dist", "build")
_OPTIONS = ("-x", "-v", "-rfE", "--no-header", "--timeout=60", "-p", "no:randomly")
_NO_REAL_SERVER = ("-k", "not real and not stage and not headers")
#: The test that failed; a file that cannot be loaded is none.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::\S+)", re.MULTILINE)

#: The libraries of a script, in its header.
_USES = re.compile(r"^-- Uses: (.*)$", re.MULTILINE)

#: Seconds without a test that ends: what a mutant keeps busy for so long is caught, too. Each test
#: may take as long as the machine is slow.
SILENCE = 120
#: Files of tests that import a module, at most, to be run before others for its sake.
MAX_NEAREST = 6
#: Seconds that tests have to end the processes that they have started.
GRACE = 20
#: Arguments of pytest.
Tests: TypeAlias = tuple[str, ...]

#: The tests of `tests/integration` that are about files whose paths begin so.
BY_WORKERS = {
    "lua/results/": ["results"],
    "redis_batches/app/chords": ["way_back"],
    "redis_batches/buffer/group_commit": ["deadline"],
    "redis_batches/calls/bulk": ["replicas"],
    "redis_batches/calls/push": ["replicas"],
    "redis_batches/calls/result": ["late_results"],
    "redis_batches/driver/": ["connection", "deadline", "topologies", "replicas"],
    "redis_batches/runs/": ["results"],
    "redis_batches/worker/incoming": ["incoming"],
}


class BrokenTrial(Exception):
    """The tests could not run: that says nothing of a mutant."""


@dataclass(frozen=True)
class Verdict:
    """What became of a mutant.

    Attributes:
        caught_by: The test that failed, or None.
        seconds: How long that took.
    """

    caught_by: str | None
    seconds: float


def stages(file: str = "", quick: bool = False) -> Iterator[Tests]:
    """Yields what to run for a change of a file, or for the code as it is.

    Args:
        file: From the root of the repository.
        quick: Whether to leave out real workers, but for those that are nearest to the file.
    """
    if nearest := _nearest(file):
        yield (*nearest, *_NO_REAL_SERVER)
    for beginning, names in BY_WORKERS.items():
        if file.startswith(beginning):
            yield _integration(*names)
    simulation = "tests/properties/test_simulation.py"
    quick_ones = [
        ("tests/lua", *_NO_REAL_SERVER),
        ("tests/unit", "--ignore=tests/unit/testing/test_server.py"),
        ("tests/properties", f"--ignore={simulation}"),
    ]
    if file.startswith("redis_batches/") and not file.startswith("redis_batches/buffer/"):
        quick_ones.append(quick_ones.pop(0))
    yield from quick_ones
    yield (simulation, "-k", "fakeredis")
    yield ("tests/lua", "-k", "real or stage")
    yield ("tests/fundamentals",)
    yield _integration("server_faults")
    if not quick and not file.startswith("lua/"):
        yield _integration("revoke", "faults", "outcomes", "shutdown", "dropin")


def copy_tree(to: Path) -> None:
    """Copies what the tests need."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def run(root: Path, mutant: Mutant | None, quick: bool = False) -> Verdict:
    """Runs the tests of a tree, with a mutant or as it is, until one fails."""
    started = time.monotonic()
    with ExitStack() as applied:
        changed = applied.enter_context(mutant.applied(root)) if mutant else None
        file = changed.relative_to(root).as_posix() if changed else ""
        failures = (_first_failure(root, tests) for tests in stages(file, quick))
        caught_by = next(filter(None, failures), None)
    return Verdict(caught_by, time.monotonic() - started)


def _integration(*names: str) -> Tests:
    return tuple(f"tests/integration/test_{name}.py" for name in names)


def _nearest(file: str) -> list[str]:
    """Returns the tests of a script, or of a module's folder and those that import the module."""
    path = Path(file)
    if path.suffix == ".lua":
        return _nearest_to_script(path)
    folder = f"tests/unit/{path.parent.name}"
    if not file or not (ROOT / folder).is_dir():
        return []
    package, module = ".".join(path.parent.parts), path.stem
    imports = re.compile(rf"{re.escape(package)}(?:\.| import ){module}\b")
    others = [
        test.relative_to(ROOT).as_posix()
        for tests in ("unit", "lua", "properties")
        for test in sorted((ROOT / "tests" / tests).rglob("test_*.py"))
        if test.parent != ROOT / folder and imports.search(test.read_text("utf-8"))
    ]
    # What most tests import says nothing of any.
    return [folder, *others] if len(others) <= MAX_NEAREST else [folder]


def _nearest_to_script(path: Path) -> list[str]:
    """Returns the tests of a script, or of those that a library is a part of."""
    uses = {
        each.stem: {*re.findall(r"\w+", " ".join(_USES.findall(each.read_text("utf-8"))))}
        for each in (ROOT / "lua").rglob("*.lua")
    }
    names = {path.stem}
    while more := {name for name, used in uses.items() if used & names} - names:
        names |= more
    found = [f"tests/lua/test_{name}.py" for name in sorted(names)]
    found = [test for test in found if (ROOT / test).exists()]
    return found if len(found) <= MAX_NEAREST else []


def _first_failure(root: Path, tests: Tests) -> str | None:
    """Runs some tests in a session of their own; a mutant may never come back from a script."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(root),
        # Else a file that was changed twice in a second passes for its own compiled form.
        "PYTHONDONTWRITEBYTECODE": "1",
        "PYTHONUNBUFFERED": "1",
        "FUZZ": "500",
    }
    command = [sys.executable, "-m", "pytest", *_OPTIONS, "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(
        command,
        cwd=root,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            output = _read(process)
        finally:
            _end(process)
    if output is None:
        return f"timeout in {tests[0]}"
    if process.returncode in (0, 5):  # 5: no test of a stage was for it
        return None
    found = _FAILED.search(output)
    if not found:
        raise BrokenTrial(f"pytest ended with {process.returncode}:\n{output[-2000:]}")
    return found[1]


def _read(process: subprocess.Popen[str]) -> str | None:
    """Returns what the tests printed, a line for each; None if they fell silent."""
    assert process.stdout is not None
    lines: queue.SimpleQueue[str] = queue.SimpleQueue()
    stream = process.stdout

    def copy() -> None:
        for line in stream:
            lines.put(line)
        lines.put("")

    threading.Thread(target=copy, daemon=True).start()
    printed = []
    with suppress(queue.Empty, subprocess.TimeoutExpired):
        while line := lines.get(timeout=SILENCE):
            printed.append(line)
        process.wait(SILENCE)
        return "".join(printed)
    return None


def _end(process: subprocess.Popen[str]) -> None:
    """Ends the tests: what they have started, they end if they still can."""
    if process.poll() is None:
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
