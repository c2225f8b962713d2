"""Real threads, and forks that wait for them."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from redis_batches.upkeep.threads import Unforked

#: Whether a thread of `threads` runs while the only greenlet does not yield.
PROGRAM = """
import {library}
{patch}
from redis_batches.upkeep import threads
import time
ran = []
def run():
    threads.sleep(0.01)
    ran.append(threads.are_greenlets())
lock = threads.new_lock()
threads.start(run)
until = time.monotonic() + 20
while not ran and time.monotonic() < until:
    pass
assert lock.acquire(timeout=1)
print(ran)
"""


@pytest.mark.parametrize(
    ("library", "patch", "greenlets"),
    [
        ("gevent.monkey", "gevent.monkey.patch_all()", True),
        ("gevent.monkey", "gevent.monkey.patch_all(thread=False)", False),
        ("gevent.monkey", "", False),
        ("eventlet", "eventlet.monkey_patch()", True),
        ("eventlet", "", False),
        ("threading", "", False),
    ],
)
def test_a_thread_runs_though_no_greenlet_yields(library: str, patch: str, greenlets: bool) -> None:
    """Whichever library has put greenlets in the place of threads."""
    program = PROGRAM.format(library=library, patch=patch)
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == f"[{greenlets}]", done.stderr


def test_a_fork_waits_for_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """And no block begins until it is over."""
    monkeypatch.setattr(Unforked, "MOMENT", 20.0)
    guard, inside, leaves = Unforked(), threading.Event(), threading.Event()
    blocks: list[int] = []

    def run() -> None:
        for number in range(2):
            with guard:
                blocks.append(number)
                inside.set()
                leaves.wait(20)

    thread = threading.Thread(target=run)
    thread.start()
    assert inside.wait(20)
    threading.Timer(0.05, leaves.set).start()
    Unforked._before_fork()
    waited = leaves.is_set()
    Unforked._after_fork()
    thread.join(20)

    assert waited
    assert blocks == [0, 1]
    assert not thread.is_alive()


def test_a_fork_waits_for_a_moment_only() -> None:
    """However many blocks wait for a server; what it did not get is still theirs."""
    guards, waited = [Unforked(), Unforked()], list[float]()

    class Held:
        """The lock of a block that does not end."""

        def acquire(self, timeout: float) -> bool:
            """Notes for how long it is waited for."""
            waited.append(timeout)
            time.sleep(timeout)
            return False

    for guard in guards:
        guard._lock = Held()
    Unforked._before_fork()
    Unforked._after_fork()

    assert len(waited) == 2
    assert 0 <= sum(waited) <= Unforked.MOMENT


def test_a_child_can_begin_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """What its parent held for the fork is free."""
    guard = Unforked()
    Unforked._before_fork()
    monkeypatch.setattr(Unforked, "_all", type(Unforked._all)(Unforked._all))
    Unforked._in_child()
    assert guard._lock.acquire(blocking=False)
    assert not Unforked._all
