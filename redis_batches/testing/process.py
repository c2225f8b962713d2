"""A process that ends with this one, whatever ends it."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

# 1 is PR_SET_PDEATHSIG. A child sets it on itself, then becomes the program: `preexec_fn` is
# unsafe beside threads. If the parent died first, `getppid()` is no longer its pid.
_DIE_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() == int(sys.argv[1]):
    os.execv(sys.argv[2], sys.argv[2:])
"""


class Child:
    """A program in a session of its own; on Linux it also ends if this process is killed.

    Args:
        command: The program and its arguments.
        log: Its output is appended to this file.
        env: Its environment; None: this process's.
        cwd: Its working directory; None: this process's.

    Raises:
        OSError: It could not be started.
    """

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        *,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        if sys.platform == "linux":
            program = shutil.which(command[0]) or command[0]
            guard = [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid())]
            command = [*guard, program, *command[1:]]
        outcome: queue.SimpleQueue[subprocess.Popen[bytes] | OSError] = queue.SimpleQueue()

        # Linux ends the child when the *thread* that made it ends, not the process: so a thread
        # of its own makes it, and lives until the child has ended.
        def keep() -> None:
            try:
                with log.open("ab") as output:
                    # A session of its own: Ctrl-C ends its users, who then end it.
                    process = subprocess.Popen(
                        command,
                        env=env,
                        cwd=cwd,
                        stdin=subprocess.DEVNULL,
                        stdout=output,
                        stderr=output,
                        start_new_session=True,
                    )
            except OSError as error:
                outcome.put(error)
                return
            outcome.put(process)
            process.wait()

        self._keeper = threading.Thread(target=keep, daemon=True)
        self._keeper.start()
        spawned = outcome.get()
        if isinstance(spawned, OSError):
            raise spawned
        self._process = spawned

    @property
    def pid(self) -> int | None:
        """Its process id, or None once it has ended."""
        return self._process.pid if self._process.poll() is None else None

    def end(self, by: signal.Signals, grace: float) -> None:
        """Ends it by a signal, and by force if it still runs some seconds later."""
        self._process.send_signal(by)
        self._keeper.join(grace)
        self._process.kill()
        self._keeper.join()
