"""Where requests wait, and what belongs to that URL: as Celery reads the settings of its own.

A URL that is taken from the broker or the result backend brings along what their settings say of
it: TLS, user, password, sentinels. What would be lost on the way is an error instead.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

from celery.exceptions import ImproperlyConfigured

from redis_batches.core.urls import SCHEMES, is_redis_url, scheme_of

#: Of a transport's options; its timeouts and retries are for other waits than ours.
_OF_SENTINELS = ("master_name", "sentinel_kwargs", "min_other_sentinels")
_OF_CONNECTIONS = ("client_name", "socket_keepalive", "socket_keepalive_options")


class Address(NamedTuple):
    """A server.

    Attributes:
        url: Its URL.
        options: What else belongs to its connections, where the URL says nothing.
    """

    url: str
    options: dict[str, Any]


class _Owner(NamedTuple):
    """Whose URL it is, and its settings.

    Attributes:
        url: The setting, of one or several servers.
        use_ssl: Name of the setting of TLS.
        transport: Name of the setting with the transport's options.
        named: Names of settings, each with the option that it is the default of.
    """

    url: Any
    use_ssl: str
    transport: str
    named: Mapping[str, str]


def address_of(conf: Any, url: str | None) -> Address:
    """Returns the server in which requests wait.

    Args:
        conf: The settings of a Celery app.
        url: `redis_batches_url`, or None for the broker's or the result backend's URL.

    Raises:
        ImproperlyConfigured: There is none, or what its settings say would be lost.
    """
    if url and not is_redis_url(url):
        raise ImproperlyConfigured(
            f"redis_batches_url has to start with one of {', '.join(SCHEMES)} (then ://)"
        )
    for owner in _owners(conf):
        for candidate in _urls(owner.url):
            if candidate == url or (not url and is_redis_url(candidate)):
                return _taken(conf, candidate, owner)
    if url:
        both = {
            **(conf.result_backend_transport_options or {}),
            **(conf.broker_transport_options or {}),
        }
        return Address(url, {name: both[name] for name in _OF_SENTINELS if name in both})
    raise ImproperlyConfigured(
        "neither the broker nor the result backend is Redis: set redis_batches_url to the "
        "redis:// URL of the server in which requests are to wait"
    )


def _owners(conf: Any) -> Iterable[_Owner]:
    broker = {"broker_user": "username", "broker_password": "password", "broker_port": "port"}
    backend = {
        **{"redis_host": "host", "redis_port": "port", "redis_username": "username"},
        **{"redis_password": "password", "redis_client_name": "client_name"},
        **{"redis_backend_credential_provider": "credential_provider"},
    }
    yield _Owner(conf.broker_write_url, "broker_use_ssl", "broker_transport_options", broker)
    yield _Owner(
        conf.result_backend,
        "redis_backend_use_ssl",
        "result_backend_transport_options",
        backend,
    )


def _urls(setting: Any) -> Iterable[str]:
    if isinstance(setting, str):
        # Sentinels are listed, and asked together; of several brokers, the first counts.
        return [setting] if scheme_of(setting) == "sentinel" else setting.split(";")
    return [url for url in setting or () if isinstance(url, str)]


def _taken(conf: Any, url: str, owner: _Owner) -> Address:
    transport: Mapping[str, Any] = conf.get(owner.transport) or {}
    if transport.get("global_keyprefix") and conf.get("redis_batches_namespace") is None:
        raise ImproperlyConfigured(
            f"{owner.transport} has a global_keyprefix, which keeps apps that share a server "
            "apart: set redis_batches_namespace to a name that no other app there has"
        )
    options = {
        name: transport[name]
        for name in (*_OF_SENTINELS, *_OF_CONNECTIONS)
        if transport.get(name) is not None
    }
    for setting, option in owner.named.items():
        if conf.get(setting):
            options.setdefault(option, conf.get(setting))
    use_ssl = conf.get(owner.use_ssl)
    if use_ssl and not isinstance(use_ssl, Mapping) and scheme_of(url) != "rediss":
        raise ImproperlyConfigured(
            f"{owner.use_ssl} = {use_ssl!r} says nothing to Celery's connections to Redis, which "
            "are in plain text then: set it to a dict such as {'ssl_cert_reqs': 'required', "
            "'ssl_ca_certs': ...}"
        )
    if use_ssl:
        options["ssl"] = use_ssl
    return Address(url, options)
