"""The demo's processes: started one by one, watched while it waits, and all ended at the end."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

ROOT = Path(__file__).parents[2]
#: Seconds in which a process may end by itself, before it is killed.
GRACE = 5.0
POLL = 0.05


class DemoError(Exception):
    """The demo cannot go on; the message says why."""


class Interrupted(DemoError):
    """Somebody asked the demo to stop."""


class Signals:
    """Notes the first signal that asks the demo to stop, instead of breaking off where it is.

    Then nothing can come between the start of a process and the note that it has to be ended, and
    a second Ctrl-C cannot break off the cleaning up.

    Attributes:
        caught: Its number, or 0.
    """

    def __init__(self) -> None:
        self.caught = 0
        signal.signal(signal.SIGINT, self._note)
        signal.signal(signal.SIGTERM, self._note)
        # nohup ignores it, and shall go on doing so.
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self._note)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.caught = self.caught or number


class Cluster:
    """Worker, beat and producer processes, for the length of a `with` block.

    Each leads a session of its own: Ctrl-C in the terminal reaches the demo, which then ends them,
    and not all of them at once.

    Args:
        folder: Where the output of each goes.
        signals: What to look at while waiting.
    """

    def __init__(self, folder: Path, signals: Signals) -> None:
        self.folder = folder
        self._signals = signals
        self._started: dict[str, subprocess.Popen[bytes]] = {}
        self._may_end: set[str] = set()

    def __enter__(self) -> Cluster:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def celery(self, name: str, *arguments: str) -> None:
        """Starts a process of the demo's app that runs until it is stopped."""
        self._start(name, ["-m", "celery", "-A", "examples.demo.tasks", *arguments])

    def producer(self, name: str, *arguments: object) -> None:
        """Starts a producer, which ends by itself."""
        self._may_end.add(name)
        self._start(name, ["-m", "examples.demo.producer", *map(str, arguments)])

    def printed(self, name: str, text: str) -> bool:
        """Whether a process has printed a text."""
        return text in self._log(name).read_text(errors="replace")

    def ended(self, name: str) -> bool:
        """Whether a process has ended."""
        return self._started[name].poll() is not None

    def wait(self, until: Callable[[], bool], what: str, timeout: float) -> None:
        """Waits for a condition, and watches the processes meanwhile.

        Raises:
            Interrupted: A signal came.
            DemoError: A process ended that should not, or the time is up.
        """
        deadline = time.monotonic() + timeout
        while True:
            if self._signals.caught:
                raise Interrupted
            self._watch()
            if until():
                return
            if time.monotonic() > deadline:
                raise DemoError(f"not within {timeout:.0f} s: {what}")
            time.sleep(POLL)

    def stop(self) -> None:
        """Ends all processes as a deploy does, by force those that take too long."""
        for process in self._started.values():
            process.terminate()
        deadline = time.monotonic() + GRACE
        for process in self._started.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(deadline - time.monotonic(), 0))
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        self._started.clear()

    def _start(self, name: str, arguments: list[str]) -> None:
        with self._log(name).open("wb") as output:
            self._started[name] = subprocess.Popen(
                [sys.executable, *arguments],
                cwd=ROOT,
                # A worker that has to be killed leaves temporary files, too.
                env={**os.environ, "TMPDIR": str(self.folder)},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def _log(self, name: str) -> Path:
        return self.folder / f"{name}.log"

    def _watch(self) -> None:
        for name, process in self._started.items():
            code = process.poll()
            if code is None or (code == 0 and name in self._may_end):
                continue
            lines = self._log(name).read_text(errors="replace").splitlines()[-15:]
            raise DemoError("\n".join([f"{name} ended with code {code}; its output ends:", *lines]))
