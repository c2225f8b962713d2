"""Waits until replicas have what a command wrote, on the connection that wrote it."""

from __future__ import annotations

from collections.abc import Sequence
from time import sleep
from typing import Any

from redis.exceptions import AskError, MovedError, TryAgainError

from redis_batches.driver.client import Cluster
from redis_batches.driver.deadline import left
from redis_batches.driver.patience import LOST, Patient

#: Seconds for a reply of a client that is none of ours.
_TIMEOUT = 1.0
#: Seconds that are too few to wait once more: a server looks ten times a second whose time is up.
LEAST = 0.4


def send_and_wait(client: Any, key: str, command: Sequence[Any], replicas: int) -> tuple[Any, int]:
    """Sends a command, and waits for replicas, once; returns the reply, and how many have all.

    WAIT counts the replicas that have the last write of its own connection. A command that was
    sent before, by another one, writes nothing now: so a write without effect follows it.

    Args:
        client: A client.
        key: Of a hash with a counter `pushed`, in the slot of the command's keys.
        command: The command, or none.
        replicas: How many to wait for, for half the time that a reply may take.
    """
    node = client.node_of(key) if isinstance(client, Cluster) else client
    timeout = client.terms.timeout if isinstance(client, Patient) else _TIMEOUT
    pipe = node.pipeline(transaction=False)
    if command:
        pipe.execute_command(*command)
    pipe.hincrby(key, "pushed", 0)
    pipe.wait(replicas, max(round(500 * min(timeout, left())), 1))
    try:
        *replies, written, copies = pipe.execute(raise_on_error=False)
    except LOST:
        _look_again(client)
        raise
    reply = replies[0] if replies else None
    if isinstance(reply, (MovedError, AskError)):
        _look_again(client)
        raise TryAgainError("the slot is elsewhere by now") from reply
    if isinstance(reply, Exception):
        raise reply
    if isinstance(written, Exception) or isinstance(copies, Exception):
        sleep(max(min(0.05, left()), 0))
        return reply, 0
    return reply, int(copies)


def _look_again(client: Any) -> None:
    """Asks a cluster for its nodes, as redis-py does when it sends a command itself."""
    if isinstance(client, Cluster):
        client.nodes_manager.initialize()
