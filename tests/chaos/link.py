"""A way to a server that can be cut or held up, and that can lead to another server."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import TypeVar, cast

_T = TypeVar("_T")
#: Close with a reset, as a firewall or a dead machine does, not with an orderly end.
_RESET = struct.pack("ii", 1, 0)


class Link:
    """Passes bytes between clients and a server on 127.0.0.1, in a thread of its own.

    Args:
        target: The server's port.

    Attributes:
        port: Where clients connect.
        target: Where new connections lead.
    """

    def __init__(self, target: int) -> None:
        self.target = target
        self._pairs: set[_Pair] = set()
        self._refuses = self._holds_requests = self._holds_replies = False
        self._hit = 0
        self._loop = asyncio.new_event_loop()
        self._thread = Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        make = self._loop.create_server(lambda: _Pair(self).client, "127.0.0.1", 0)
        self._server = asyncio.run_coroutine_threadsafe(make, self._loop).result()
        self.port: int = self._server.sockets[0].getsockname()[1]

    def close(self) -> None:
        """Ends all connections, and takes no more."""
        self.cut()
        self._do(self._server.close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Resets all connections, whatever is on its way; new ones are reset until `mend`."""
        self._do(self._cut)

    def hold(self, *, requests: bool = True) -> None:
        """Takes bytes and connections, and passes nothing on until `mend`.

        Args:
            requests: Whether requests are held, too; else the server carries them out, and only
                its replies are late.
        """
        self._do(lambda: self._hold(requests))

    def mend(self) -> int:
        """Passes everything on again; returns how many connections noticed since it was struck."""
        return self._do(self._mend)

    def waiting(self) -> int:
        """Returns how many connections wait for a reply."""
        return self._do(lambda: sum(pair.owed for pair in self._pairs))

    def _do(self, action: Callable[[], _T]) -> _T:
        async def act() -> _T:
            return action()

        return asyncio.run_coroutine_threadsafe(act(), self._loop).result()

    def _cut(self) -> None:
        self._refuses = True
        for pair in [*self._pairs]:
            self._hit += 1
            pair.reset()

    def _hold(self, requests: bool) -> None:
        self._holds_requests, self._holds_replies = requests, True

    def _mend(self) -> int:
        self._refuses = self._holds_requests = self._holds_replies = False
        noticed = self._hit + sum(pair.held for pair in self._pairs)
        self._hit = 0
        for pair in [*self._pairs]:
            pair.flow()
        return noticed

    def admits(self, pair: _Pair) -> bool:
        """Notes a new connection; returns whether it is not refused."""
        self._hit += self._refuses
        if not self._refuses:
            self._pairs.add(pair)
        return not self._refuses

    def forget(self, pair: _Pair) -> None:
        """Notes that a connection has ended."""
        self._pairs.discard(pair)

    def holds(self, *, replies: bool) -> bool:
        """Whether bytes in one direction are held now."""
        return self._holds_replies if replies else self._holds_requests


class _Pair:
    """A client's connection, and the one to the server that belongs to it."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self.owed = False
        self.client, self.server = _End(self, replies=False), _End(self, replies=True)
        self.client.peer, self.server.peer = self.server, self.client

    @property
    def held(self) -> bool:
        return bool(self.client.kept or self.server.kept)

    async def connect(self) -> None:
        loop = asyncio.get_running_loop()
        try:
            await loop.create_connection(lambda: self.server, "127.0.0.1", self.link.target)
        except OSError:
            self.reset()

    def reset(self) -> None:
        self.link.forget(self)
        for end in (self.client, self.server):
            end.reset()

    def flow(self) -> None:
        for end in (self.client, self.server):
            end.flow()


class _End(asyncio.Protocol):
    """One of the two connections of a pair."""

    def __init__(self, pair: _Pair, *, replies: bool) -> None:
        self.pair = pair
        self.peer: _End = self
        self.kept: list[bytes] = []
        self._replies = replies
        self._ended = False
        self._transport: asyncio.Transport | None = None
        self._connecting: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if self._replies:
            self.peer.flow()
        elif self.pair.link.admits(self.pair):
            self._connecting = asyncio.get_running_loop().create_task(self.pair.connect())
        else:
            self.reset()

    def data_received(self, data: bytes) -> None:
        self.pair.owed |= not self._replies
        self.kept.append(data)
        self.flow()

    def connection_lost(self, exc: Exception | None) -> None:
        self._ended = True
        self.flow()

    def flow(self) -> None:
        """Passes on what it may: bytes, and at last its end."""
        sink = self.peer._transport
        if sink is None or self.pair.link.holds(replies=self._replies):
            return
        if self.kept:
            sink.writelines(self.kept)
            self.kept.clear()
            self.pair.owed &= not self._replies
        if self._ended:
            sink.close()
            self.pair.link.forget(self.pair)

    def reset(self) -> None:
        self.kept.clear()
        if self._transport is not None and not self._ended:
            raw = self._transport.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
            self._transport.abort()
