"""A TCP proxy before a server that loses replies, or falls silent, on demand."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress


class LossyProxy:
    """Passes bytes on, until it is told to eat a reply and cut the connection.

    Args:
        port: The server's port on 127.0.0.1.

    Attributes:
        silent: Whether it accepts connections and bytes, and passes nothing on.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lost: list[bytes] = []
        self._lock = threading.Lock()
        self.eat = 0
        self.half = False
        self.silent = False
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where clients connect."""
        return int(self._listener.getsockname()[1])

    @property
    def eaten(self) -> int:
        """How many replies were lost."""
        return len(self._lost)

    def close(self) -> None:
        """Accepts no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            try:
                server = socket.create_connection(("127.0.0.1", self._target))
            except ConnectionRefusedError:
                client.close()
                continue
            for source, sink, replies in ((client, server, False), (server, client, True)):
                threading.Thread(
                    target=self._pass_on, args=(source, sink, replies), daemon=True
                ).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket, replies: bool) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                with self._lock:
                    eats = replies and self.eat > 0
                    self.eat -= eats
                if eats:
                    self._lost.append(data)
                    if self.half:
                        sink.sendall(data[: len(data) // 2])
                    break
                if not self.silent:
                    sink.sendall(data)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
