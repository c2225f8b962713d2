"""Real worker and beat processes for the tests that need them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from redis_batches.testing.server import EmbeddedServer
from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]


class Celery:
    """One `celery -A APP ...` process; its output goes to a file.

    Args:
        app: The module of the app.
        args: What follows, e.g. `["worker", "-c", "2"]`.
        env: Environment variables for the app.
        log: Where its output goes.
        python: The interpreter.
    """

    def __init__(
        self,
        app: str,
        args: Sequence[str],
        env: dict[str, str],
        log: Path,
        python: str = sys.executable,
    ) -> None:
        self.log = log
        with log.open("ab") as output:
            self._process = subprocess.Popen(
                [python, "-m", "celery", "-A", app, *args],
                cwd=ROOT,
                env={**os.environ, **env},
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The main process's id, which is also that of its group."""
        return self._process.pid

    @property
    def has_ended(self) -> bool:
        """Whether the main process has ended."""
        return self._process.poll() is not None

    def output(self) -> str:
        """Returns what it printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, timeout: float = 30.0) -> None:
        """Waits until it printed a text."""

        def printed() -> bool:
            assert self._process.poll() is None, f"the process ended:\n{self.output()}"
            return text in self.output()

        wait_until(printed, timeout, description=f"{text!r} in {self.log}")

    def signal(self, number: int) -> None:
        """Sends a signal to the main process."""
        os.kill(self.pid, number)

    def pause(self) -> None:
        """Stops the main process and its children, as a machine without memory would."""
        os.killpg(self.pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Lets them go on."""
        os.killpg(self.pid, signal.SIGCONT)

    def kill(self) -> None:
        """Kills the main process and its children at once, as a lost machine would."""
        os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)

    def wait_for_end(self, timeout: float = 30.0) -> None:
        """Waits until it has ended by itself."""
        self._process.wait(timeout)

    def stop(self, timeout: float = 15.0) -> None:
        """Ends it as a deploy does; kills what has not ended by then."""
        if self._process.poll() is None:
            self.resume()
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout)
        with suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        self._process.wait(10)


class Cluster:
    """The processes of one test, around one server.

    Args:
        server: The broker, result backend and store.
        app: The module of the app, which reads its settings from the environment.
        folder: Where output goes, and what tasks record (`$TEST_FOLDER`).

    Attributes:
        python: The interpreter of the processes that are started next.
    """

    def __init__(self, server: EmbeddedServer, app: str, folder: Path) -> None:
        self._app = app
        self.folder = folder
        self.python = sys.executable
        self.started: list[Celery] = []
        base = server.url.rpartition("/")[0]
        self.env = {
            "TEST_BROKER": f"{base}/0",
            "TEST_BACKEND": f"{base}/1",
            "TEST_FOLDER": str(folder),
        }

    def _start(self, args: Sequence[str], env: dict[str, str]) -> Celery:
        log = self.folder / f"{args[0]}-{len(self.started)}.log"
        process = Celery(self._app, args, {**self.env, **env}, log, self.python)
        self.started.append(process)
        return process

    def worker(self, *args: str, concurrency: int = 2, ready: bool = True, **env: str) -> Celery:
        """Starts a worker and waits until it is ready, if it lives for so long."""
        node = f"-n w{len(self.started)}@%h"
        process = self._start(
            ["worker", "-l", "INFO", "-c", str(concurrency), *node.split(), *args], env
        )
        if ready:
            process.wait_for("ready.")
        return process

    def beat(self, **env: str) -> Celery:
        """Starts beat and waits until it runs."""
        schedule = str(self.folder / "schedule")
        process = self._start(["beat", "-l", "INFO", "-s", schedule], env)
        process.wait_for("beat: Starting")
        return process

    def stop(self) -> None:
        """Ends all processes."""
        for process in self.started:
            process.stop()


def wait_until_they_listen(app: Any, workers: int) -> None:
    """Waits until workers hear broadcasts, which they may not yet when they say "ready."."""
    wait_until(
        lambda: len(app.control.ping(timeout=2, limit=workers)) == workers,
        description=f"{workers} workers hear broadcasts",
    )
