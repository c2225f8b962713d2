"""What a simulated worker process sees of the world: time, and two servers that fail as drawn.

One clock stands for every clock. Whoever sleeps moves it; a process that is stopped sleeps through
its own heartbeats. Each command that goes to the store or to the result backend passes `Outages`,
which lets it through, loses it, loses its reply, holds it up, stops the process there, or ends it.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import fakeredis
import redis
from redis import exceptions

from redis_batches.driver.scripts import load_scripts

LEASE = 30.0
#: The first second of every game.
EPOCH = 1_800_000_000.0
#: A fault that lasts until the game's own end.
FOR_EVER = 1_000_000


class Died(BaseException):
    """The process ended here: whatever its code does after that never happened."""


def _errors() -> dict[str, Callable[[], Exception]]:
    """What a server that fails answers, by the name of the failure."""
    return {
        "lost": lambda: exceptions.ConnectionError("Connection closed by server."),
        "timeout": lambda: exceptions.TimeoutError("Timeout reading from socket"),
        "oom": lambda: exceptions.OutOfMemoryError("command not allowed when used memory > 'max"),
        "read only": lambda: exceptions.ReadOnlyError("You can't write against a read only rep"),
        "unknown": lambda: exceptions.ResponseError("ERR something odd"),
    }


ERRORS = _errors()


@dataclass
class Fault:
    """Something that goes wrong with one command, or with several in a row.

    Attributes:
        where: The server, "store" or "results"; or "ring", for a doorbell.
        kind: A name of `ERRORS`, or "slow", "stall" or "die".
        first: The number of the first command that it hits.
        count: How many commands it hits.
        after: Whether the command is done first: then only its reply is lost, late, or unread.
        seconds: How long "slow" and "stall" take.
        others: Whether another worker goes on meanwhile, for a stall.
    """

    where: str
    kind: str
    first: int
    count: int = 1
    after: bool = False
    seconds: float = 0.0
    others: bool = True

    @classmethod
    def draw(cls, rng: random.Random) -> Fault:
        """Returns any one."""
        where = rng.choice(("results", "results", "results", "store", "store", "ring"))
        kind = rng.choice((*ERRORS, *ERRORS, "slow", "stall", "stall", "die", "die"))
        one = kind in ("stall", "die") or where == "ring"
        count = 1 if one else rng.choice((1, 1, 2, 3, 8, 30, FOR_EVER))
        if kind == "unknown":
            count = min(count, 3)
        return cls(
            where,
            kind,
            first=rng.randrange(4) if where == "ring" else rng.randrange(1, 30),
            count=count,
            after=rng.random() < 0.4,
            seconds=rng.choice((1.0, 12.0, LEASE + 1, 70.0)),
            others=rng.random() < 0.8,
        )

    @property
    def stops(self) -> bool:
        """Whether it may end a lease."""
        return self.kind in ("stall", "die")


@dataclass
class Process:
    """What one simulated process holds while it answers a doorbell.

    Attributes:
        kept: The leases that its heartbeat keeps.
        dead: Whether it has ended.
        struck: The faults that it met.
        stalled_at: The last command before it was stopped, if it was stopped after one.
    """

    kept: list[Any] = field(default_factory=list)
    dead: bool = False
    struck: list[Fault] = field(default_factory=list)
    stalled_at: str = ""
    last: str = ""

    @property
    def cannot_tell(self) -> bool:
        """Whether the result backend refused it something."""
        return any(fault.where == "results" and not fault.stops for fault in self.struck)

    def met(self, where: str) -> bool:
        """Whether something went wrong there, or with the process itself."""
        return any(fault.where == where or fault.stops for fault in self.struck)


class Outages:
    """The clock, the process that runs now, and the faults that are still to come.

    Args:
        faults: What goes wrong.
        look: Called after each command that may have written, with the server's name, the command's
            own name and its keys.
        others: Lets other workers do what they find, while this one stands still.
    """

    def __init__(
        self,
        faults: list[Fault],
        look: Callable[[str, str, list[str]], None],
        others: Callable[[], None],
    ) -> None:
        self.now = EPOCH
        self.process: Process | None = None
        self.played: Counter[str] = Counter()
        #: All that was drawn.
        self.faults = faults
        self._faults, self._look, self._others = faults, look, others
        self._counts: Counter[str] = Counter()
        self._beating = False

    @property
    def over(self) -> bool:
        """Whether nothing more can go wrong but what lasts for ever."""
        return not any(self._counts[f.where] < f.first + f.count for f in self._faults)

    def end(self) -> None:
        """Ends every fault."""
        self._faults = []

    def monotonic(self) -> float:
        """Stands for `time.monotonic`."""
        return self.now

    def clock(self) -> str:
        """Returns the server's time, as the scripts take it."""
        return str(round(self.now * 1000))

    def sleep(self, seconds: float) -> None:
        """Stands for `time.sleep`: time goes by, and the process's heartbeat beats."""
        end = self.now + max(seconds, 0.0)
        while not self._beating and self.process and self.process.kept:
            if self.now + LEASE / 3 > end:
                break
            self.now += LEASE / 3
            self._beat(self.process)
        self.now = max(self.now, end)

    def _beat(self, process: Process) -> None:
        self._beating = True
        try:
            for lease in process.kept:
                if not lease.lost and not lease.overdue:
                    # As its thread, which logs what goes wrong and tries again.
                    try:
                        lease.extend()
                    except Exception:
                        self.played["missed heartbeat"] += 1
        finally:
            self._beating = False

    @contextmanager
    def answering(self) -> Iterator[Process]:
        """Gives the commands inside to a process of their own."""
        outer, self.process = self.process, Process()
        try:
            yield self.process
        finally:
            self.process = outer

    @contextmanager
    def faultless(self) -> Iterator[None]:
        """Lets nothing go wrong with the processes inside."""
        outer, self._faults = self._faults, []
        try:
            yield
        finally:
            self._faults = outer

    @contextmanager
    def nobody(self) -> Iterator[None]:
        """Lets nothing go wrong with the commands inside."""
        outer, self.process = self.process, None
        try:
            yield
        finally:
            self.process = outer

    def command(self, where: str, name: str, keys: list[str], send: Callable[[], Any]) -> Any:
        """Sends a command, as far as its process and the faults let it."""
        process = self.process
        if process is None:
            return send()
        if process.dead:
            raise Died
        fault = self._next(where)
        if fault is None:
            reply = send()
        elif fault.after:
            reply = send()
            self._looked(where, name, keys)
            process.last = name
            self._strike(fault, process)
            return reply
        else:
            self._strike(fault, process)
            reply = send()
        process.last = name
        self._looked(where, name, keys)
        return reply

    def _looked(self, where: str, name: str, keys: list[str]) -> None:
        with self.nobody():
            self._look(where, name, keys)

    def _next(self, where: str) -> Fault | None:
        number = self._counts[where]
        self._counts[where] += 1
        for fault in self._faults:
            if fault.where == where and fault.first <= number < fault.first + fault.count:
                # A heartbeat is another thread: it neither ends nor stops the function's.
                return None if self._beating and fault.stops else fault
        return None

    def _strike(self, fault: Fault, process: Process) -> None:
        self.played[f"{fault.where} {fault.kind}"] += 1
        process.struck.append(fault)
        if fault.kind == "die":
            process.dead = True
            raise Died
        if fault.kind == "stall":
            process.stalled_at = process.last if fault.after else ""
            self.now += max(fault.seconds, LEASE + 1)
            if fault.others:
                with self.nobody():
                    self._others()
        elif fault.kind == "slow":
            self.sleep(fault.seconds)
        else:
            raise ERRORS[fault.kind]()


class _Faulty:
    """A client whose commands pass `outages`."""

    where = ""
    outages: Outages | None = None

    def execute_command(self, *args: Any, **options: Any) -> Any:
        send: Any = super().execute_command  # type: ignore[misc]
        return self._pass(_name(args), _keys(args), lambda: send(*args, **options))

    def pipeline(self, *args: Any, **kwargs: Any) -> Any:
        pipe = super().pipeline(*args, **kwargs)  # type: ignore[misc]
        execute = pipe.execute

        def send(*args: Any, **kwargs: Any) -> Any:
            keys = [key for command, _ in pipe.command_stack for key in _keys(command)]
            return self._pass("PIPELINE", keys, lambda: execute(*args, **kwargs))

        pipe.execute = send
        return pipe

    def _pass(self, name: str, keys: list[str], send: Callable[[], Any]) -> Any:
        if self.outages is None:
            return send()
        return self.outages.command(self.where, name, keys, send)


def _name(args: tuple[Any, ...]) -> str:
    """Returns the name of a command, or of the script of this package that it runs."""
    return _scripts().get(str(args[1]), "EVALSHA") if args[0] == "EVALSHA" else str(args[0])


@cache
def _scripts() -> dict[str, str]:
    return {script.sha: name for name, script in load_scripts().items()}


def _keys(args: tuple[Any, ...]) -> list[str]:
    """Returns the keys of a command, as far as it has any."""
    scripted = args[0] in ("EVALSHA", "EVAL")
    found = args[3 : 3 + int(args[2])] if scripted else args[1:2]
    return [key.decode() if isinstance(key, bytes) else str(key) for key in found]


class FaultyFake(_Faulty, fakeredis.FakeRedis):
    """A fake server's client."""


class FaultyReal(_Faulty, redis.Redis):
    """A real server's client."""


def connect(where: str, url: str | None) -> Any:
    """Returns a client of a real server, or of a fake one of its own."""
    made: Any = FaultyReal.from_url(url) if url else FaultyFake(server=fakeredis.FakeServer())
    made.where = where
    return made
