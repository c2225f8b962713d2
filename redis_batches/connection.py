"""From a URL to a client of Redis or Valkey that retries and times out as this package needs.

It is redis-py's, but a script's keys and fixed values are packed once, not at each call: for the
30 arguments of a push that is a quarter of what redis-py itself takes. Another quarter is its way
from a command to a connection, which is shorter here.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from time import monotonic
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.connection import parse_url
from redis.exceptions import BusyLoadingError, ConnectionError, ResponseError, TimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

#: Schemes that redis-py knows by another name. The second line is Celery's.
_SCHEMES = {
    **{"valkey": "redis", "valkeys": "rediss"},
    **{"redis+socket": "unix", "sentinel": "redis"},
    **{"redis+cluster": "redis", "rediss+cluster": "rediss"},
}
_CERT_REQS = {"cert_none": "none", "cert_optional": "optional", "cert_required": "required"}
#: Seconds for which a connection is taken to be alive.
WARM = 1.0
#: redis-py before 5.3 wants to know for which command a connection is.
_COMMAND = ("EVALSHA",) if redis.VERSION < (5, 3) else ()
#: redis-py 5 lets a refused connection out as an OSError.
_LOST = (ConnectionError, TimeoutError, BusyLoadingError, OSError)
SCHEMES = ("redis", "rediss", "unix", *_SCHEMES)


def scheme_of(url: str | None) -> str:
    """Returns the scheme of a URL, or "" if it has none."""
    return urlsplit(url or "").scheme


class Packed:
    """Several arguments of a command in the form in which Redis reads them.

    See https://redis.io/docs/latest/develop/reference/protocol-spec/.
    """

    __slots__ = ("count", "data")

    def __init__(self, arguments: Iterable[bytes | str | int]) -> None:
        parts = [_packed(argument) for argument in arguments]
        self.count, self.data = len(parts), b"".join(parts)


class Pool(redis.ConnectionPool):
    """redis-py's own, with a shorter way to a connection that answered a moment ago.

    redis-py asks the socket of each connection that it hands out whether the server has closed it
    or left something unread, and books it in and out, which takes a seventh of a push.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._warm: deque[tuple[Any, float]] = deque()
        super().__init__(*args, **kwargs)

    def take(self) -> Any:
        """Returns a connection; one that was closed a moment ago is made anew by a retry."""
        try:
            connection, answered = self._warm.pop()
        except IndexError:
            return self.get_connection(*_COMMAND)
        if monotonic() - answered < WARM:
            return connection
        self.release(connection)
        return self.get_connection(*_COMMAND)

    def keep(self, connection: Any, answered: bool) -> None:
        """Takes a connection back.

        Args:
            connection: The connection.
            answered: Whether the reply to its last command was read. Else a signal or the end of a
                greenlet came in between, and the next command would get that reply for its own.
        """
        # redis-py 5 never asks for it, so it has no such method.
        leaves = getattr(connection, "should_reconnect", bool)()
        if answered and not leaves:
            self._warm.append((connection, monotonic()))
        else:
            connection.disconnect()
            self.release(connection)

    def reset(self) -> None:
        """Forgets all connections, as after a fork."""
        self._warm.clear()
        super().reset()


class Client(redis.Redis):
    """A client that sends a script whose keys and fixed values were packed before."""

    def run_packed(self, fixed: Packed, rest: Sequence[bytes | str | int]) -> Any:
        """Sends EVALSHA with some arguments that were packed before, and some that were not.

        As redis-py's `execute_command`, but redis-py 6 and later record each command for metrics of
        their own, which is left out.
        """
        command, pool = [pack_script(fixed, rest)], cast(Pool, self.connection_pool)
        connection, answered = pool.take(), False

        def ask() -> Any:
            connection.send_packed_command(command)
            return connection.read_response()

        try:
            reply = connection.retry.call_with_retry(ask, lambda _: connection.disconnect())
            answered = True
            return reply
        except ResponseError:
            answered = True
            raise
        finally:
            pool.keep(connection, answered)


def pack_script(fixed: Packed, rest: Sequence[bytes | str | int]) -> bytes:
    """Returns the bytes of an EVALSHA."""
    head = b"*%d\r\n$7\r\nEVALSHA\r\n%b" % (1 + fixed.count + len(rest), fixed.data)
    return head + b"".join(map(_packed, rest))


def _packed(argument: bytes | str | int) -> bytes:
    data = argument if isinstance(argument, bytes) else str(argument).encode()
    return b"$%d\r\n%b\r\n" % (len(data), data)


def is_redis_url(url: str | None) -> bool:
    """Tells whether a URL names a server that this package can use."""
    return scheme_of(url) in SCHEMES


def normalize(url: str) -> str:
    """Returns a URL in redis-py's words for one in Celery's or Valkey's."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "redis+socket" and "virtual_host" in query:
        query["db"] = query.pop("virtual_host")
    if "ssl_cert_reqs" in query:
        wanted = query["ssl_cert_reqs"].lower()
        query["ssl_cert_reqs"] = _CERT_REQS.get(wanted, wanted)
    scheme = _SCHEMES.get(parts.scheme, parts.scheme)
    tail = f"?{urlencode(query)}" if query else ""
    return f"{scheme}://{parts.netloc}{parts.path}{tail}"


def connect(
    url: str, timeout: float, retries: int, sentinel: Mapping[str, Any] | None = None
) -> redis.Redis:
    """Returns a client; it connects at its first command, that of a cluster at once.

    Every script may be sent twice without harm, so a lost connection or reply is retried.

    Args:
        url: One of `SCHEMES`. `redis+cluster://` and `rediss+cluster://` take several nodes,
            separated by commas; `sentinel://` URLs are separated by semicolons.
        timeout: Seconds for a connection and for each reply.
        retries: How often a command is sent again.
        sentinel: For `sentinel://`: `master_name`, and perhaps `sentinel_kwargs`, as in Celery's
            `broker_transport_options`.

    Raises:
        redis.exceptions.RedisError: No node of a cluster could be reached.
        KeyError: `master_name` is missing.
    """
    options: dict[str, Any] = {
        "socket_timeout": timeout,
        "socket_connect_timeout": timeout,
        "retry": Retry(
            ExponentialBackoff(cap=1.0, base=0.05),
            retries,
            supported_errors=_LOST,
        ),
    }
    if scheme_of(url).endswith("+cluster"):
        return _connect_to_cluster(url, options)
    options["health_check_interval"] = 30
    # Without it redis-py 5 retries to connect, but not what it had sent.
    options["retry_on_error"] = list(_LOST)
    if _SCHEMES.get(scheme_of(url), scheme_of(url)) != "unix":
        options["socket_keepalive"] = True
    if scheme_of(url) == "sentinel":
        return _connect_by_sentinel(url, options, sentinel or {})
    return Client.from_pool(Pool.from_url(normalize(url), **options))


def drop_connections(client: redis.Redis) -> None:
    """Closes a client's connections: the next command asks anew who the primary is."""
    if hasattr(client, "disconnect_connection_pools"):
        client.disconnect_connection_pools()
    else:
        client.connection_pool.disconnect()


def _connect_to_cluster(url: str, options: dict[str, Any]) -> redis.Redis:
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    places = [_parse(parts._replace(netloc=host).geturl()) for host in hosts.split(",")]
    nodes = [
        ClusterNode(place["host"], place.get("port", 6379))  # type: ignore[no-untyped-call]
        for place in places
    ]
    common = _parse(parts._replace(netloc=f"{login}@{parts.hostname}").geturl())
    for name in ("host", "port", "db"):
        common.pop(name, None)
    if parts.scheme == "rediss+cluster":
        common["ssl"] = True
    common.pop("connection_class", None)
    # It has every command of `redis.Redis`, but not its type.
    return cast(redis.Redis, RedisCluster(startup_nodes=nodes, **options, **common))


def _connect_by_sentinel(
    url: str, options: dict[str, Any], sentinel: Mapping[str, Any]
) -> redis.Redis:
    places = [_parse(each) for each in url.split(";")]
    asked = Sentinel(  # type: ignore[no-untyped-call]
        [(place.get("host", "localhost"), place.get("port", 26379)) for place in places],
        sentinel_kwargs={
            "socket_timeout": options["socket_timeout"],
            **(sentinel.get("sentinel_kwargs") or {}),
        },
    )
    common = {name: places[0][name] for name in ("db", "username", "password") if name in places[0]}
    name = sentinel["master_name"]
    primary: redis.Redis = asked.master_for(name, **options, **common)  # type: ignore[no-untyped-call]
    return primary


def _parse(url: str) -> dict[str, Any]:
    return dict(parse_url(normalize(url)))  # type: ignore[no-untyped-call]
