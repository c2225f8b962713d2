"""A private RabbitMQ node: on 127.0.0.1 alone, with its data in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from contextlib import suppress
from pathlib import Path

from amqp.exceptions import NotFound
from kombu import Connection, pools

from redis_batches.testing.process import Child
from redis_batches.testing.server import HOST, free_port
from tests.support.waiting import wait_until

#: Not the wrapper on the PATH of Debian, which runs it as another user in /var/lib.
EXECUTABLES = ("/usr/lib/rabbitmq/bin/rabbitmq-server", "rabbitmq-server")
START_TIMEOUT = 60.0
STOP_GRACE = 15.0


def find_rabbitmq() -> str | None:
    """Returns the server's start script, or None if RabbitMQ or Erlang is not installed."""
    found = next(filter(None, map(shutil.which, EXECUTABLES)), None)
    return found if shutil.which("epmd") and shutil.which("erl") else None


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
            self._children.append(Child(mapper, self._log, env=env, cwd=self._folder))
            server = Child([self._executable], self._log, env=env, cwd=self._folder)
            self._children.append(server)
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
            child.end(signal.SIGTERM, STOP_GRACE)
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
        assert all(child.pid for child in self._children), f"RabbitMQ ended:\n{log}"
        try:
            with Connection(self.url, connect_timeout=2) as connection:
                connection.connect()
        except OSError:
            return False
        return True
