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
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from redis_batches.driver.scripts import load_scripts
from redis_batches.driver.sources import LIBRARIES, libraries_of, load_sources
from tests.mutants.catalogue import ROOT, Mutant

_NOT_COPIED = (".git", ".venv*", ".servers", ".hypothesis", "*cache*", "dist", "build")
_OPTIONS = ("-x", "-v", "-rfE", "--no-header", "--timeout=60", "-p", "no:randomly")
_NO_REAL_SERVER = ("-k", "not real and not stage and not headers")
#: The test that failed; a file that cannot be loaded is none.
_FAILED = re.compile(r"^(?:FAILED|ERROR) (\S+::\S+)", re.MULTILINE)

#: Seconds without a test that ends: what a mutant keeps busy for so long is caught, too. Each test
#: may take as long as the machine is slow.
SILENCE = 120
#: Seconds that tests have to end the processes that they have started.
GRACE = 20
#: Arguments of pytest.
Tests: TypeAlias = tuple[str, ...]

_WAY_BACK = [
    "tests/unit/runs/test_batch.py",
    "tests/unit/runs/test_decide.py",
    "tests/unit/runs/test_reporter.py",
    "tests/unit/runs/test_state_writer.py",
    "tests/unit/runs/test_endings.py",
    "tests/unit/runs/test_runner.py",
    "tests/properties/test_untold.py",
    "tests/properties/test_odd_requests.py",
    "tests/integration/test_results.py",
]
#: The tests that are about a module of the package; those about a script have its name.
_NEAREST = {
    **dict.fromkeys(("reporter", "report", "report_all", "canvas", "earlier"), _WAY_BACK),
    **dict.fromkeys(("batch", "decide", "decode", "drop", "give_back", "running"), _WAY_BACK),
    "state_writer": _WAY_BACK,
    "incoming": ["tests/integration/test_incoming.py"],
    "incoming_call": ["tests/integration/test_incoming.py"],
    "stamps": ["tests/lua/test_cancel.py", "tests/unit/operate/test_revoke.py"],
    "canceller": ["tests/lua/test_cancel.py", "tests/unit/operate/test_revoke.py"],
    "envelope": ["tests/unit/wire/test_envelope.py"],
    "address": ["tests/unit/app/test_address.py"],
    "group_commit": [
        "tests/unit/buffer/test_group_commit.py",
        "tests/integration/test_deadline.py",
    ],
    "connection": ["tests/unit/app/test_address.py", "tests/integration/test_topologies.py"],
    "deadline": ["tests/integration/test_deadline.py"],
    "client": [
        "tests/unit/core/test_outage.py",
        "tests/unit/driver/test_connection.py",
        "tests/integration/test_connection.py",
        "tests/integration/test_deadline.py",
        "tests/integration/test_topologies.py",
    ],
    "chords": ["tests/unit/runs/test_endings.py", "tests/integration/test_way_back.py"],
    "doorbell": ["tests/unit/app/test_doorbell.py"],
    "endings": ["tests/unit/runs/test_endings.py"],
    "heartbeat": ["tests/unit/upkeep/test_heartbeat.py"],
    "unstored": ["tests/unit/worker/test_unstored.py"],
    "inspector": ["tests/lua/test_inspector.py"],
    "result": ["tests/integration/test_late_results.py"],
    "lease": ["tests/lua/test_ack.py", "tests/lua/test_release.py", "tests/lua/test_extend.py"],
    "protocol": ["tests/properties/test_odd_requests.py", "tests/unit/calls/test_call_options.py"],
    "printable": ["tests/unit/core/test_printable.py"],
    "bulk": ["tests/integration/test_replicas.py"],
    "push": [
        "tests/unit/task/test_batches.py",
        "tests/unit/runs/test_endings.py",
        "tests/integration/test_replicas.py",
    ],
    "send": ["tests/unit/calls/test_call_options.py"],
    "request": ["tests/unit/core/test_printable.py", "tests/properties/test_odd_requests.py"],
    # lua/results/store.lua is about the same.
    "results": ["tests/integration/test_results.py"],
    "states": ["tests/integration/test_results.py"],
    "outage": ["tests/unit/core/test_outage.py"],
    "schedule": ["tests/unit/upkeep/test_schedule.py"],
    "server_errors": ["tests/integration/test_server_faults.py"],
    "publisher": ["tests/unit/app/test_publisher.py"],
    "registry": ["tests/lua/test_registry.py", "tests/unit/worker/test_sweeping.py"],
    "control": ["tests/unit/operate/test_revoke.py"],
    "replication": ["tests/integration/test_replicas.py"],
    "revoke": ["tests/unit/operate/test_revoke.py"],
    "ringer": ["tests/unit/app/test_ringer.py"],
    "state": ["tests/unit/app/test_doorbell.py"],
    "runner": [
        "tests/unit/runs/test_runner.py",
        "tests/unit/operate/test_revoke.py",
        "tests/properties/test_odd_requests.py",
        "tests/properties/test_untold.py",
    ],
    "scripts": ["tests/lua/test_scripts.py"],
    "store": ["tests/lua/test_claim.py", "tests/lua/test_scripts.py", "tests/lua/test_promote.py"],
    "sweeper": ["tests/lua/test_sweep.py"],
    "threads": ["tests/unit/upkeep/test_threads.py"],
    "steps": ["tests/unit/worker/test_sweeping.py"],
    "sweep_thread": ["tests/unit/worker/test_sweeping.py"],
    "doorbell_request": ["tests/unit/runs/test_runner.py"],
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


def stages(mutant: Mutant | None, quick: bool = False) -> Iterator[Tests]:
    """Yields what to run for a mutant, or for the code as it is; if quick, without real workers."""
    if mutant is not None and (nearest := _nearest(mutant)):
        yield (*nearest, *_NO_REAL_SERVER)
    simulation = "tests/properties/test_simulation.py"
    quick_ones = [
        ("tests/lua", *_NO_REAL_SERVER),
        ("tests/unit", "--ignore=tests/unit/testing/test_server.py"),
        ("tests/properties", f"--ignore={simulation}"),
    ]
    if mutant is not None and mutant.file.startswith("redis_batches/"):
        quick_ones.append(quick_ones.pop(0))
    yield from quick_ones
    yield (simulation, "-k", "fakeredis")
    yield ("tests/lua", "-k", "real or stage")
    yield ("tests/fundamentals",)
    yield ("tests/integration/test_server_faults.py",)
    if not quick and (mutant is None or mutant.file.startswith("redis_batches/")):
        workers = ("revoke", "faults", "outcomes", "shutdown", "dropin")
        yield tuple(f"tests/integration/test_{name}.py" for name in workers)


def copy_tree(to: Path) -> None:
    """Copies what the tests need."""
    shutil.copytree(ROOT, to, ignore=shutil.ignore_patterns(*_NOT_COPIED))


def run(root: Path, mutant: Mutant | None, quick: bool = False) -> Verdict:
    """Runs the tests of a tree, with a mutant or as it is, until one fails."""
    started, caught_by = time.monotonic(), None
    before = mutant.apply(root) if mutant else ""
    try:
        for tests in stages(mutant, quick):
            caught_by = _first_failure(root, tests)
            if caught_by:
                break
    finally:
        if mutant:
            (root / mutant.file).write_text(before, "utf-8")
    return Verdict(caught_by, time.monotonic() - started)


def _scripts_with(path: Path) -> list[str]:
    """Returns the scripts that are made of a Lua file."""
    if path.parent.name != LIBRARIES:
        return [path.stem]
    sources = load_sources()
    return [name for name in load_scripts() if path.stem in libraries_of(sources[name], sources)]


def _nearest(mutant: Mutant) -> list[str]:
    path = Path(mutant.file)
    if path.suffix == ".lua":
        named = [f"tests/lua/test_{name}.py" for name in _scripts_with(path)]
        own = [each for each in named if (ROOT / each).exists()]
        return own or _NEAREST.get(path.parent.name, [])
    return _NEAREST.get(path.stem, [])


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
