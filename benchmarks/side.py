"""One side of the comparison: a library, the interpreter that has it, its callers and workers."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import redis

from benchmarks.peer import ROOT
from redis_batches.testing.server import HOST, EmbeddedServer

WORKER = ("celery", "-A", "benchmarks.workload", "worker", "--pool", "prefork")
#: Seconds that a measurement may take.
PATIENCE = 300
#: Seconds in which a worker with something to do runs nothing.
STALLED = 60


@dataclass(frozen=True)
class Run:
    """One run of a batch function.

    Attributes:
        started: When it began, in seconds.
        size: Its number of requests.
        waits: Seconds since the call of each request, where the function says so.
    """

    started: float
    size: int
    waits: tuple[float, ...] = ()

    @classmethod
    def read(cls, line: str) -> Run:
        """Returns what `benchmarks.workload` noted."""
        started, size, _, *waits = line.split()
        return cls(float(started), int(size), tuple(map(float, waits)))


@dataclass(frozen=True)
class Side:
    """Ours or theirs.

    Attributes:
        name: "ours" or "theirs".
        library: The module that `Batches` is imported from.
        python: The interpreter that has it.
        server: The server that both sides use, one after the other.
        folder: Where its processes write.
        every: Requests of a full batch, where the workload does not say it itself.
        interval: Seconds that a request of each of `late_pages` waits.
        payload: Bytes of the argument of each call.
        processes: Of the worker.
        load_seconds: For which calls are offered to `count_soon`.
    """

    name: str
    library: str
    python: Path
    server: EmbeddedServer
    folder: Path
    every: int = 100
    interval: float = 1.0
    payload: int = 50
    processes: int = 2
    load_seconds: float = 1.0

    def reset(self) -> None:
        """Empties the server and forgets the runs."""
        with redis.Redis.from_url(self.server.url) as client:
            client.flushall()
        self._runs.write_bytes(b"")

    def call(self, measurement: str, task: str, count: int) -> dict[str, float]:
        """Runs `benchmarks.caller` and returns what it measured.

        Raises:
            RuntimeError: It failed; the message quotes the end of its log.
        """
        arguments = ["benchmarks.caller", measurement, task, str(count)]
        with self._log.open("ab") as log:
            done = subprocess.run(
                [str(self.python), "-m", *arguments],
                cwd=ROOT,
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=log,
                timeout=PATIENCE,
            )
        if done.returncode:
            raise self._failure(" ".join(arguments))
        measured: dict[str, float] = json.loads(done.stdout)
        return measured

    @contextmanager
    def worker(self, number: int = 1) -> Iterator[int]:
        """Runs a worker for the length of a `with` block; yields the id of its main process.

        It is killed: Celery's warm shutdown with messages left in the queue may take 30 seconds.

        Args:
            number: Tells it from others that run meanwhile.
        """
        with self._log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(str(self.python), "-m", *WORKER, "-c", str(self.processes)),
                    *("--without-gossip", "--without-mingle", "-n", f"worker-{number}@%h"),
                ],
                cwd=ROOT,
                env=self._environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process.pid
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def runs_of(self, requests: int) -> list[Run]:
        """Waits until so many requests ran; returns their runs, first to last.

        Raises:
            RuntimeError: They did not run in time; the message quotes the end of the log.
        """
        seen, deadline = 0, time.monotonic() + STALLED
        while time.monotonic() < deadline:
            # The last line may be incomplete.
            lines = self._runs.read_text().split("\n")[:-1]
            runs = [Run.read(line) for line in lines]
            if sum(run.size for run in runs) >= requests:
                return sorted(runs, key=lambda run: run.started)
            if len(runs) > seen:
                seen, deadline = len(runs), time.monotonic() + STALLED
            time.sleep(0.02 if len(runs) < 100 else 0.1)
        raise self._failure(f"a worker that should run {requests} requests")

    def versions(self) -> str:
        """Returns what its environment has installed of interest."""
        names = ("celery", "celery-batches", "kombu", "redis")
        program = (
            "from importlib.metadata import distributions\n"
            "found = {d.name.lower(): d.version for d in distributions()}\n"
            f"print(', '.join(f'{{n}} {{found[n]}}' for n in {names} if n in found))"
        )
        done = subprocess.run(
            [str(self.python), "-c", program], stdout=subprocess.PIPE, text=True, check=True
        )
        return done.stdout.strip()

    @property
    def _runs(self) -> Path:
        return self.folder / f"{self.name}.runs"

    @property
    def _log(self) -> Path:
        return self.folder / f"{self.name}.log"

    @property
    def _environment(self) -> dict[str, str]:
        return {
            **os.environ,
            "BENCHMARK_LIBRARY": self.library,
            "BENCHMARK_SERVER": f"redis://{HOST}:{self.server.port}",
            "BENCHMARK_RUNS": str(self._runs),
            "BENCHMARK_EVERY": str(self.every),
            "BENCHMARK_INTERVAL": str(self.interval),
            "BENCHMARK_PAYLOAD": str(self.payload),
            "BENCHMARK_PROCESSES": str(self.processes),
            "BENCHMARK_LOAD_SECONDS": str(self.load_seconds),
        }

    def _failure(self, what: str) -> RuntimeError:
        end = self._log.read_text(errors="replace")[-2000:]
        return RuntimeError(f"{self.name}: {what} failed; its log ends:\n{end}")
