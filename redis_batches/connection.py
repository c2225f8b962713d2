"""From a URL to a client of Redis or Valkey that retries and times out as this package needs."""

from __future__ import annotations

from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from redis.backoff import ExponentialBackoff
from redis.exceptions import BusyLoadingError, ConnectionError, TimeoutError
from redis.retry import Retry

#: Schemes that redis-py knows by another name. The last two are Celery's.
_SCHEMES = {"valkey": "redis", "valkeys": "rediss", "redis+socket": "unix"}
_CERT_REQS = {"cert_none": "none", "cert_optional": "optional", "cert_required": "required"}
SCHEMES = ("redis", "rediss", "unix", *_SCHEMES)


def is_redis_url(url: str | None) -> bool:
    """Tells whether a URL names a server that this package can use."""
    return bool(url) and urlsplit(str(url)).scheme in SCHEMES


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


def connect(url: str, timeout: float, retries: int) -> redis.Redis:
    """Returns a client; it connects at its first command.

    Every script may be sent twice without harm, so a lost connection or reply is retried.

    Args:
        url: `redis://`, `rediss://`, `unix://`, `valkey://`, `valkeys://` or `redis+socket://`.
        timeout: Seconds for a connection and for each reply.
        retries: How often a command is sent again.
    """
    return redis.Redis.from_url(
        normalize(url),
        socket_timeout=timeout,
        socket_connect_timeout=timeout,
        socket_keepalive=True,
        health_check_interval=30,
        retry=Retry(
            ExponentialBackoff(cap=1.0, base=0.05),
            retries,
            # redis-py 5 lets a refused connection out as an OSError.
            supported_errors=(ConnectionError, TimeoutError, BusyLoadingError, OSError),
        ),
    )
