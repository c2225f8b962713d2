"""A private RabbitMQ node: on 127.0.0.1 alone, with its data in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from queue import SimpleQueue

from amqp.exceptions import NotFound
from kombu import Connection, pools

from redis_batches.embedded import _DIE_WITH_PARENT, HOST
from tests.conftest import wait_until

#: Not the wrapper on the PATH of Debian, which runs it as another user in /var/lib.
EXECUTABLES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
START_TIMEOUT = 60.0
STOP_GRACE = 15.0


def find_rabbitmq() -> str | None:
    """Returns the server's start script, or None if RabbitMQ or Erlang is not installed."""
    found = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    return found if shutil.which("epmd") and shutil.which("erl") else None


def free_port() -> int:
    """Returns a port that nobody listens on."""
    with socket.create_server((HOST, 0)) as listener:
        return int(listener.getsockname()[1])


class Child:
    """A process that ends with this one, whatever ends it; on Linux also by SIGKILL.

    Args:
        command: The program and its arguments.
        env: Its environment.
        log: Where its output goes.
    """

    def __init__(self, command: Sequence[str], env: dict[str, str], log: Path) -> None:
        if sys.platform == "linux":
            guard = [sys.executable, "-ISc", _DIE_WITH_PARENT, str(os.getpid())]
            command = [*guard, str(shutil.which(command[0])), *command[1:]]
        made: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()

        # Linux ends the child with the *thread* that made it: this one lives as long as the child.
        def keep() -> None:
            with log.open("ab") as output:
                process = subprocess.Popen(
                    command,
                    env=env,
                    cwd=log.parent,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=output,
                    start_new_session=True,
                )
            made.put(process)
            process.wait()

        self._keeper = threading.Thread(target=keep, daemon=True)
        self._keeper.start()
        self._process = made.get(timeout=10)

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """Ends it, by force after a while."""
        self._process.send_signal(by)
        self._keeper.join(STOP_GRACE)
        self._process.kill()
        self._keeper.join()


class RabbitMQ:
    """One node with its own port mapper; the end of the `with` block ends both.

    Args:
        executable: What `find_rabbitmq` found.
    """

    def __init__(self, executable: str) -> None:
        self._executable = executable
        self._folder = Path(tempfile.mkdtemp(prefix="redis-batches-rabbitmq-"))
        self._log = self._folder / "log"
        self._port, self._mapper_port = free_port(), free_port()
        self._children: list[Child] = []

    @property
    def url(self) -> str:
        """The broker's URL."""
        return f"amqp://guest:guest@{HOST}:{self._port}//"

    def __enter__(self) -> RabbitMQ:
        env = self._environment()
        mapper = ["epmd", "-address", HOST, "-port", str(self._mapper_port)]
        try:
            self._children.append(Child(mapper, env, self._log))
            self._children.append(Child([self._executable], env, self._log))
            wait_until(self._answers, START_TIMEOUT, description="RabbitMQ answers")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for pool in pools.connections.values():
            if pool.connection.transport.driver_type == "amqp":
                pool.force_close_all()
        for child in reversed(self._children):
            child.end()
        shutil.rmtree(self._folder, ignore_errors=True)

    def purge(self, *queues: str) -> None:
        """Empties queues; they stay, because connections remember what they have declared."""
        for queue in queues:
            with Connection(self.url) as connection, suppress(NotFound):
                connection.default_channel.queue_purge(queue)

    def _environment(self) -> dict[str, str]:
        folder, name = self._folder, f"rb-{self._folder.name[-8:]}@localhost"
        config, plugins = folder / "rabbitmq.conf", folder / "enabled_plugins"
        config.write_text(
            f"listeners.tcp.default = {HOST}:{self._port}\ndisk_free_limit.absolute = 1MB\n"
        )
        plugins.write_text("[].\n")
        return {
            **os.environ,
            "HOME": str(folder),
            "ERL_EPMD_ADDRESS": HOST,
            "ERL_EPMD_PORT": str(self._mapper_port),
            "RABBITMQ_CONFIG_FILE": str(config),
            "RABBITMQ_CONF_ENV_FILE": str(folder / "none"),
            "RABBITMQ_DIST_PORT": str(free_port()),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(plugins),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_LOG_BASE": str(folder),
            "RABBITMQ_MNESIA_BASE": str(folder / "data"),
            "RABBITMQ_NODENAME": name,
            "RABBITMQ_NODE_PORT": str(self._port),
            "RABBITMQ_PID_FILE": str(folder / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": (
                "-kernel inet_dist_use_interface {127,0,0,1} +S 2:2"
            ),
            # The script then becomes the server, so that its pid is the server's.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _answers(self) -> bool:
        log = self._log.read_text(errors="replace")[-2000:]
        assert all(child.runs for child in self._children), f"RabbitMQ ended:\n{log}"
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except OSError:
            return False
        return True
