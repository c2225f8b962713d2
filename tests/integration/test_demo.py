"""The demo: right when nothing is wrong, and gone without a trace when somebody stops it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from examples.demo.audit import Audit
from examples.demo.ledger import Run
from examples.demo.producer import Sent
from tests.support.processes import ROOT
from tests.support.waiting import wait_until


class Demo:
    """A demo in a session of its own, as a terminal would start it.

    Args:
        folder: For its output, and for whatever it puts into the folder for temporary files.
    """

    def __init__(self, folder: Path) -> None:
        self._log = folder / "log"
        self.temporary = folder / "tmp"
        self.temporary.mkdir()
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, calls: int) -> None:
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "examples.demo", "--calls", str(calls)],
                cwd=ROOT,
                env={**os.environ, "TMPDIR": str(self.temporary)},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def press(self, number: int) -> None:
        """Signals every process of the session, as Ctrl-C in a terminal does."""
        assert self._process
        os.killpg(self._process.pid, number)

    def exit_code(self) -> int:
        assert self._process
        return self._process.wait(60)

    def output(self) -> str:
        return self._log.read_text()

    def processes(self) -> list[psutil.Process]:
        """Returns all that it started, however deep, also those that lost their parent."""
        found, mine = [], str(self.temporary)
        for process in psutil.process_iter():
            try:
                # The server writes its title over its environment, but it works in the folder.
                places = (process.environ().get("TMPDIR", ""), process.cwd())
                if any(place.startswith(mine) for place in places):
                    found.append(process)
            except psutil.Error:
                continue
        return found

    def kill(self) -> None:
        for process in self.processes():
            process.kill()
        if self._process:
            self._process.wait(10)


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    made = Demo(tmp_path)
    yield made
    made.kill()


def test_a_full_run_finds_nothing_wrong(demo: Demo) -> None:
    """Every call runs exactly once, both triggers occur, and nothing is left."""
    demo.start(calls=2000)

    assert demo.exit_code() == 0, demo.output()
    assert "OK every call was executed exactly once, and every result is right." in demo.output()
    assert demo.processes() == []
    assert list(demo.temporary.iterdir()) == []


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGINT, "a private server"),
        (signal.SIGTERM, "two workers"),
        (signal.SIGINT, "pushed"),
    ],
)
def test_a_stopped_demo_leaves_nothing(demo: Demo, number: int, moment: str) -> None:
    """Ctrl-C or SIGTERM, early or in the middle: no process and no file stays."""
    demo.start(calls=20_000)
    wait_until(lambda: moment in demo.output(), description=f"the demo prints {moment!r}")
    wait_until(lambda: len(demo.processes()) > 1, description="it has started others")

    demo.press(number)

    assert demo.exit_code() == 128 + number, demo.output()
    assert demo.processes() == []
    assert list(demo.temporary.iterdir()) == []


def test_without_a_server_it_says_what_to_do(demo: Demo, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing server is no traceback."""
    monkeypatch.setenv("REDIS_BATCHES_SERVER", "/nowhere/redis-server")

    demo.start(calls=2000)

    assert demo.exit_code() == 1
    assert "sh run.sh demo" in demo.output()
    assert "Traceback" not in demo.output()


RIGHT = Audit(
    sent=[Sent({"count_click": ["a"], "reputation": ["b"]}, Counter({"/": 1}), checked=1)],
    runs=[
        Run("count_click", "worker-1", ["a"], full=False, waited=1.0, at=0.0),
        Run("reputation", "worker-2", ["b"], full=False, waited=1.0, at=0.0),
    ],
    clicks=Counter({"/": 1}),
)


def test_the_audit_passes_what_is_right() -> None:
    """Two calls, two runs, one answer."""
    assert RIGHT.faults() == []


@pytest.mark.parametrize(
    ("wrong", "fault"),
    [
        (replace(RIGHT, runs=RIGHT.runs[:1]), "reputation: 1 calls never executed, e.g. b"),
        (replace(RIGHT, runs=RIGHT.runs * 2), "reputation: 1 calls executed twice, e.g. b"),
        (replace(RIGHT, sent=[Sent()]), "reputation: 1 calls executed but never sent, e.g. b"),
        (replace(RIGHT, sent=RIGHT.sent * 2), "reputation: 1 calls accepted twice, e.g. b"),
        (
            replace(RIGHT, sent=[replace(RIGHT.sent[0], wrong=["a bad answer"])]),
            "a bad answer",
        ),
        (
            replace(RIGHT, sent=[replace(RIGHT.sent[0], checked=0)]),
            "1 answers were due, 0 could be checked",
        ),
        (replace(RIGHT, clicks=Counter()), "1 clicks on /, but 0 were counted"),
        (
            replace(RIGHT, runs=[RIGHT.runs[0], replace(RIGHT.runs[1], waited=0.5)]),
            "reputation: a batch of 1 calls after 0.500 s",
        ),
    ],
)
def test_the_audit_finds_what_is_wrong(wrong: Audit, fault: str) -> None:
    """Each kind of fault is found and named."""
    assert fault in wrong.faults()
