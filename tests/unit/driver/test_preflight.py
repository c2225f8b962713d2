"""A server that would lose requests is refused before a worker starts."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis

from redis_batches.core.errors import UnsupportedServer
from redis_batches.driver.preflight import check_server
from redis_batches.testing.server import EmbeddedServer


@pytest.fixture
def private(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """A connection to a server whose settings a test may change."""
    with redis.Redis.from_url(server.url) as client:
        yield client


def test_a_server_without_persistence_is_warned_about(
    private: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """With what to set."""
    check_server(private)
    assert "CONFIG SET appendonly yes" in caplog.text

    caplog.clear()
    private.config_set("appendonly", "yes")
    check_server(private)
    assert caplog.text == ""


@pytest.mark.parametrize("policy", ["allkeys-lru", "allkeys-random"])
def test_a_server_that_evicts_waiting_requests_is_refused(
    private: redis.Redis, policy: str
) -> None:
    """With what to set."""
    private.config_set("maxmemory-policy", policy)

    with pytest.raises(UnsupportedServer, match="maxmemory-policy noeviction"):
        check_server(private)


def test_an_eviction_policy_for_keys_with_a_ttl_is_fine(private: redis.Redis) -> None:
    """No key of this package has one."""
    private.config_set("maxmemory-policy", "volatile-lru")

    check_server(private)


def test_a_server_that_is_too_old_is_refused(
    private: redis.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By what it says of itself."""
    monkeypatch.setattr(private, "info", lambda: {"redis_version": "6.0.16"})

    with pytest.raises(UnsupportedServer, match=r"Redis 6\.0\.16 is too old"):
        check_server(private)


def test_an_acl_without_info_is_warned_about(
    server: EmbeddedServer, private: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody can check then, and the worker starts."""
    private.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "+@all", "-info")
    url = server.url.replace("redis://", "redis://app:secret@")

    with redis.Redis.from_url(url) as limited:
        check_server(limited)

    assert "the ACL forbids INFO" in caplog.text
