"""Three servers, and the workers, beat and producers around them: all end with the run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tests.chaos.ledger import FOLDER_VARIABLE
from tests.chaos.places import Place, Store
from tests.chaos.producer import CALLS_NO_MORE
from tests.chaos.tasks import PARENT_VARIABLE

ROOT = Path(__file__).parents[2]
WORKERS, CONCURRENCY, PRODUCERS = 3, 2, 3
START_TIMEOUT = 60.0
#: Seconds in which callers are told what was stored before.
TELL_TIMEOUT = 10.0
#: Seconds in which any call has to return, whatever happens to the servers.
CALL_TIMEOUT = 60.0
#: Seconds in which a worker that was told to end has to; Celery may take 30 to notice a new broker.
SHUTDOWN_TIMEOUT = 45.0
POLL = 0.05


class Member:
    """One process of the run with its children: a session of its own, its output in a file.

    Attributes:
        name: Its name.
        told_at: When it was told to end (monotonic), or None.
        resume_at: When it goes on after a pause (monotonic), or None.
    """

    def __init__(self, name: str, command: list[str], env: dict[str, str], folder: Path) -> None:
        self.name = name
        self.told_at: float | None = None
        self.resume_at: float | None = None
        self._ready = False
        self._log = folder / f"{name}.log"
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-m", *command],
                cwd=ROOT,
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The main process's id, which is also that of its group."""
        return self._process.pid

    @property
    def running(self) -> bool:
        """Whether the main process has not ended."""
        return self._process.poll() is None

    @property
    def ready(self) -> bool:
        """Whether it is a worker or beat that has started, and does not pause."""
        self._ready = self._ready or self.said("ready.") or self.said("beat: Starting")
        return self._ready and self.running and self.resume_at is None

    def said(self, text: str) -> bool:
        """Whether it printed a text."""
        return text in self._log.read_text(errors="replace")

    def children(self) -> list[int]:
        """Returns the ids of its pool processes."""
        with suppress(psutil.NoSuchProcess):
            return [child.pid for child in psutil.Process(self.pid).children()]
        return []

    def tell(self, number: int) -> None:
        """Tells the main process alone to end, by a signal."""
        self.told_at = time.monotonic()
        with suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def signal_all(self, number: int) -> None:
        """Sends a signal to the main process and its children."""
        with suppress(ProcessLookupError):
            os.killpg(self.pid, number)

    def kill(self) -> None:
        """Kills the main process and its children at once, as a lost machine would."""
        self.signal_all(signal.SIGKILL)
        self._process.wait()


class Cluster:
    """The processes of one run, for the length of a `with` block.

    Args:
        folder: Where their output and the ledgers go.
        seed: Decides what the producers call.
        rate: Calls a second of all producers.

    Attributes:
        store: The server in which requests wait.
        broker: The server that is the broker.
        backend: The server that is the result backend.
        workers: Those that shall run.
        producers: Those that shall run.
        stuck: Producers that a call did not return to, or that it ended.
        surprises: What happened to a process without being done to it.
    """

    def __init__(self, folder: Path, *, seed: int, rate: float) -> None:
        self._folder = folder
        self._seed, self._rate = seed, rate
        self._count = 0
        self._leaving: list[Member] = []
        self.store = Store()
        self.broker, self.backend = Place("broker"), Place("backend")
        self.workers: list[Member] = []
        self.producers: list[Member] = []
        self.beat: Member | None = None
        self.stuck: list[str] = []
        self.surprises: list[str] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        members = [*self.workers, *self.producers, *self._leaving]
        for member in [*members, *filter(None, [self.beat])]:
            member.kill()
        for place in self.places:
            place.stop()

    @property
    def places(self) -> list[Place]:
        """The servers."""
        return [self.store, self.broker, self.backend]

    @property
    def ready(self) -> list[Member]:
        """The workers that could run a batch now."""
        return [worker for worker in self.workers if worker.ready]

    @property
    def quiet(self) -> bool:
        """Whether the producers call no more."""
        return not any(each.running and not each.said(CALLS_NO_MORE) for each in self.producers)

    def _start(self) -> None:
        for place in self.places:
            place.start()
        for _ in range(WORKERS):
            self.start_worker()
        self.start_beat()
        self.wait(lambda: len(self.ready) == WORKERS, START_TIMEOUT, "the workers are ready")
        for _ in range(PRODUCERS):
            self.start_producer()

    def start_worker(self) -> None:
        """Starts a worker, and does not wait for it."""
        name = self._name("worker")
        options = ["-l", "INFO", "-c", str(CONCURRENCY), "-n", f"{name}@chaos"]
        self.workers.append(self._celery(name, "worker", *options))

    def start_beat(self) -> None:
        """Starts beat, and does not wait for it."""
        name = self._name("beat")
        schedule = str(self._folder / f"{name}.schedule")
        self.beat = self._celery(name, "beat", "-l", "INFO", "--pidfile=", "-s", schedule)

    def start_producer(self) -> None:
        """Starts a producer, and does not wait for it."""
        name = self._name("producer")
        options = [str(self._seed), str(self._rate / PRODUCERS)]
        command = ["tests.chaos.producer", name, *options]
        self.producers.append(Member(name, command, self._env(), self._folder))

    def remove(self, worker: Member, number: int) -> None:
        """Tells a worker to end, and starts another in its place."""
        worker.tell(number)
        self.workers.remove(worker)
        self._leaving.append(worker)
        self.start_worker()

    def tick(self) -> None:
        """Does what is due: blips and pauses end, what ended by itself is noted and replaced."""
        for place in self.places:
            place.tick()
        self._tend_workers()
        for member in [*self._leaving]:
            if member.told_at is not None and time.monotonic() > member.told_at + SHUTDOWN_TIMEOUT:
                self.surprises.append(f"{member.name} did not end in {SHUTDOWN_TIMEOUT:.0f} s")
                member.kill()
            if not member.running:
                self._leaving.remove(member)
        if self.beat is not None and not self.beat.running:
            self.surprises.append(f"{self.beat.name} ended by itself")
            self.start_beat()
        ended = [each.name for each in self.producers if not each.running and each.told_at is None]
        self.stuck += [name for name in ended if name not in self.stuck]

    def _tend_workers(self) -> None:
        for worker in [*self.workers]:
            if worker.resume_at is not None and time.monotonic() >= worker.resume_at:
                self.resume(worker)
            if not worker.running:
                self.surprises.append(f"{worker.name} ended by itself")
                self.workers.remove(worker)
                self.start_worker()

    def resume(self, worker: Member) -> None:
        """Lets a worker that was stopped go on."""
        worker.resume_at = None
        worker.signal_all(signal.SIGCONT)

    def settle_down(self) -> None:
        """Tells the producers to call no more, and sees to it that everything else runs."""
        for place in self.places:
            place.heal()
        for worker in self.workers:
            self.resume(worker)
        for producer in self.producers:
            producer.tell(signal.SIGTERM)
        self.wait(lambda: len(self.ready) == WORKERS, START_TIMEOUT, "the workers are ready")

    def end_producers(self) -> None:
        """Waits until the producers have ended, when nothing runs any more."""
        if not self._producers_end(TELL_TIMEOUT):
            for producer in self.producers:
                producer.tell(signal.SIGINT)
        if not self._producers_end(CALL_TIMEOUT):
            for producer in self.producers:
                if producer.running:
                    self.stuck.append(producer.name)
                    # It writes its stack into its log.
                    producer.signal_all(signal.SIGUSR1)

    def _producers_end(self, timeout: float) -> bool:
        with suppress(TimeoutError):
            self.wait(lambda: not any(each.running for each in self.producers), timeout, "the end")
            return True
        return False

    def wait(self, until: Callable[[], bool], timeout: float, what: str) -> None:
        """Waits for a condition, and looks after the processes meanwhile.

        Raises:
            TimeoutError: The time is up.
        """
        deadline = time.monotonic() + timeout
        while not until():
            if time.monotonic() > deadline:
                raise TimeoutError(f"not within {timeout:.0f} s: {what}")
            self.idle()

    def idle(self) -> None:
        """Lets a moment pass, and looks after the processes."""
        time.sleep(POLL)
        self.tick()

    def _celery(self, name: str, *args: str) -> Member:
        command = ["celery", "-A", "tests.chaos.tasks", *args]
        return Member(name, command, self._env(), self._folder)

    def _name(self, role: str) -> str:
        self._count += 1
        return f"{role}-{self._count}"

    def _env(self) -> dict[str, str]:
        return {
            **os.environ,
            "CHAOS_STORE": self.store.url,
            "CHAOS_BROKER": self.broker.url,
            "CHAOS_BACKEND": self.backend.url,
            FOLDER_VARIABLE: str(self._folder),
            PARENT_VARIABLE: str(os.getpid()),
            # Workers that are killed leave temporary files behind.
            "TMPDIR": str(self._folder),
        }
