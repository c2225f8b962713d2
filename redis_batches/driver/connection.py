"""From a URL to a client of Redis or Valkey that goes on, and gives up, as this package needs."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, cast
from urllib.parse import parse_qsl, urlencode, urlsplit

import redis
from kombu.utils.imports import symbol_by_name
from redis.connection import parse_url

from redis_batches.core.urls import ALIASES, scheme_of
from redis_batches.driver.client import ONCE, Client, Cluster, Sentinels
from redis_batches.driver.patience import Patient, Terms
from redis_batches.driver.pool import (
    Connection,
    Pool,
    SentinelConnection,
    SentinelPool,
    SentinelSSLConnection,
    SSLConnection,
    UnixConnection,
)

_CERT_REQS = {"cert_none": "none", "cert_optional": "optional", "cert_required": "required"}
#: Seconds for a command, unless a setting says another number.
DEADLINE = 10.0
#: What a URL or Celery's options may hold that this package has its own settings for.
_OURS = (
    *("socket_timeout", "socket_connect_timeout", "timeout", "retry_on_timeout", "retry_on_error"),
    *("health_check_interval", "connection_class", "max_connections", "retry"),
    *("decode_responses", "encoding", "encoding_errors"),
)
_OF_SENTINELS = ("master_name", "sentinel_kwargs", "min_other_sentinels")
#: redis-py 8 allows a hundred connections unless it is told a number.
_ANY_NUMBER = 2**31


def normalize(url: str) -> str:
    """Returns a URL in redis-py's words for one in Celery's or Valkey's."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query))
    if parts.scheme == "redis+socket" and "virtual_host" in query:
        query["db"] = query.pop("virtual_host")
    scheme = ALIASES.get(parts.scheme, parts.scheme)
    tail = f"?{urlencode(query)}" if query else ""
    return f"{scheme}://{parts.netloc}{parts.path}{tail}"


def connect(
    url: str,
    timeout: float,
    retries: int,
    options: Mapping[str, Any] | None = None,
    deadline: float = DEADLINE,
    patient: bool = True,
) -> redis.Redis:
    """Returns a client; it connects at its first command, that of a cluster at once.

    Every script may be sent twice without harm, so a lost connection or reply is retried.

    Args:
        url: With one of `core.urls.SCHEMES`. `redis+cluster://` and `rediss+cluster://` take
            several nodes, separated by commas; `sentinel://` URLs are separated by semicolons.
        timeout: Seconds for connecting, and for each reply.
        retries: How often a command is sent again whose reply or connection was lost. Where
            another server may take over, until the deadline, unless it is 0.
        options: More options of redis-py's connections, for what the URL does not say. `ssl`: True,
            or a mapping of `ssl_*` options. For `sentinel://`: `master_name`, and perhaps
            `min_other_sentinels` and `sentinel_kwargs`, options for the sentinels themselves.
        deadline: Seconds for a command with all that it takes.
        patient: Whether to ask again while the server answers with what passes by itself.

    Raises:
        ValueError: The URL or an option says what no connection understands.
        redis.exceptions.RedisError: No node of a cluster could be reached.
    """
    terms = Terms("", timeout, deadline, retries, patient)
    if scheme_of(url).endswith("+cluster"):
        return _connect_to_cluster(url, terms, options or {})
    if scheme_of(url) == "sentinel":
        return _connect_by_sentinel(url, terms, options or {})
    made = _prepare({**(options or {}), **_parse(url)}, terms)
    place = made.get("path") or _place(made.get("host", "localhost"), made.get("port", 6379))
    return Client(Pool(**made), _at(terms, str(place)))


def _connect_to_cluster(url: str, terms: Terms, options: Mapping[str, Any]) -> redis.Redis:
    parts = urlsplit(url)
    login, _, hosts = parts.netloc.rpartition("@")
    places = [_parse(parts._replace(netloc=host).geturl()) for host in hosts.split(",")]
    nodes = [(place["host"], place.get("port", 6379)) for place in places]
    common = _parse(parts._replace(netloc=f"{login}@{parts.hostname}").geturl())
    made = _prepare({**options, **common}, terms)
    for name in ("host", "port", "db"):
        made.pop(name, None)
    terms = _at(terms, ", ".join(_place(*node) for node in nodes), fails_over=True)
    make = partial(Cluster, terms, nodes, partial(_node_pool, made))
    # It has every command of `redis.Redis`, but not its type.
    return cast(redis.Redis, Patient(terms).patiently(make))


def _node_pool(options: Mapping[str, Any], **given: Any) -> Pool:
    """Makes a pool for a node of a cluster; redis-py drops options that it does not know."""
    return Pool(**{**given, **options})


def _connect_by_sentinel(url: str, terms: Terms, options: Mapping[str, Any]) -> redis.Redis:
    places = [_parse(each) for each in url.split(";")]
    common = {**options, **places[0]}
    name = common.get("master_name")
    nodes = [(place.get("host", "localhost"), place.get("port", 26379)) for place in places]
    listed = ", ".join(_place(*node) for node in nodes)
    if not isinstance(name, str) or not name:
        raise ValueError(
            "set broker_transport_options = {'master_name': ...}: the sentinels at "
            "redis_batches_url are asked for that server"
        )
    asked = [
        Client(
            Pool(**_prepare({**dict(common.get("sentinel_kwargs") or {}), **node}, terms)),
            Terms(_place(**node), terms.timeout, terms.deadline, 0, patient=False),
        )
        for node in ({"host": host, "port": port} for host, port in nodes)
    ]
    sentinels = Sentinels(asked, int(common.get("min_other_sentinels") or 0))
    made = _prepare(common, terms)
    made["connection_class"] = (
        SentinelSSLConnection if made["connection_class"] is SSLConnection else SentinelConnection
    )
    for spare in ("host", "port"):
        made.pop(spare, None)
    pool = SentinelPool(name, sentinels, **made)
    return Client(pool, _at(terms, f"{name} of the sentinels {listed}", fails_over=True))


def _prepare(options: Mapping[str, Any], terms: Terms) -> dict[str, Any]:
    """Returns what a pool takes, with our own timeouts and without retries of redis-py's."""
    made = {
        name: value
        for name, value in options.items()
        if name not in _OURS and name not in _OF_SENTINELS and value is not None
    }
    _secure(made, options)
    provider = made.get("credential_provider")
    if provider is not None:
        made["credential_provider"] = _made(provider)
        for name in ("username", "password"):
            made.pop(name, None)
    made["socket_timeout"] = made["socket_connect_timeout"] = terms.timeout
    made["retry"] = ONCE
    if "path" in made:
        made["connection_class"] = UnixConnection
        for name in ("host", "port", "socket_keepalive", "socket_keepalive_options"):
            made.pop(name, None)
    else:
        made.setdefault("socket_keepalive", True)
    try:
        # Nothing is connected by it, but redis-py says what it does not know.
        made["connection_class"](**{k: v for k, v in made.items() if k != "connection_class"})
    except (TypeError, redis.RedisError) as exc:
        kind = made["connection_class"].__name__
        raise ValueError(
            f"the URL of the server, or an option that belongs to it, says what redis-py's {kind} "
            f"does not understand: {exc}"
        ) from exc
    made["max_connections"] = _ANY_NUMBER
    return made


def _secure(made: dict[str, Any], options: Mapping[str, Any]) -> None:
    """Decides on TLS: the scheme, an option `ssl`, or any option of TLS ask for it."""
    ssl = made.pop("ssl", None)
    if isinstance(ssl, str):
        ssl = ssl.lower() not in ("0", "f", "false", "n", "no", "")
    if isinstance(ssl, Mapping):
        for name, value in ssl.items():
            made.setdefault(name, value)
    theirs = issubclass(options.get("connection_class", Connection), redis.SSLConnection)
    wanted = theirs or bool(ssl) or any(name.startswith("ssl_") for name in made)
    made["connection_class"] = SSLConnection if wanted else Connection
    if not wanted:
        return
    required = made.get("ssl_cert_reqs", "required")
    if isinstance(required, str):
        required = _CERT_REQS.get(required.lower(), required.lower())
    made["ssl_cert_reqs"] = required
    checks = made.get("ssl_check_hostname")
    if isinstance(checks, str):
        made["ssl_check_hostname"] = checks.lower() not in ("0", "f", "false", "n", "no")
    elif checks is None:
        # redis-py before 6 takes a certificate of any host.
        made["ssl_check_hostname"] = required not in ("none", 0)


def _made(provider: Any) -> Any:
    """Returns a provider of user names and passwords, of which Celery takes the name, too."""
    return symbol_by_name(provider)() if isinstance(provider, str) else provider


def _at(terms: Terms, place: str, *, fails_over: bool = False) -> Terms:
    return Terms(place, terms.timeout, terms.deadline, terms.retries, terms.patient, fails_over)


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"


def _parse(url: str) -> dict[str, Any]:
    try:
        return dict(parse_url(normalize(url)))  # type: ignore[no-untyped-call]
    except ValueError:
        # Its text may quote what was taken for a port: a part of the password.
        raise ValueError(
            "the URL of the server cannot be read: write / as %2F, # as %23, ? as %3F and @ as %40 "
            "in a user name or password, and check the types of its options"
        ) from None
