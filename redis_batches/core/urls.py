"""Which URLs name a server that this package can use."""

from __future__ import annotations

from urllib.parse import urlsplit

#: Schemes that redis-py knows by another name. The second line is Celery's.
ALIASES = {
    **{"valkey": "redis", "valkeys": "rediss"},
    **{"redis+socket": "unix", "sentinel": "redis"},
    **{"redis+cluster": "redis", "rediss+cluster": "rediss"},
}
SCHEMES = ("redis", "rediss", "unix", *ALIASES)


def scheme_of(url: str | None) -> str:
    """Returns the scheme of a URL, or "" if it has none."""
    return urlsplit(url or "").scheme


def is_redis_url(url: str | None) -> bool:
    """Tells whether a URL names a server that this package can use."""
    return scheme_of(url) in SCHEMES
