"""What the settings of the broker and the result backend bring along to our connections."""

from __future__ import annotations

import ssl
from typing import Any, cast

import pytest
import redis
from celery import Celery
from celery.exceptions import ImproperlyConfigured
from redis.credentials import CredentialProvider

from redis_batches.app.state import runtime_of
from redis_batches.driver.pool import SentinelSSLConnection, SSLConnection, UnixConnection
from tests.support import raw

REQUIRED = {"ssl_cert_reqs": ssl.CERT_REQUIRED, "ssl_ca_certs": "/some/ca.pem"}


class Provider(CredentialProvider):
    """Knows a user and a password."""

    def get_credentials(self) -> tuple[str, str]:
        """Returns them."""
        return "provided", "secret"


def pool_of(broker: str = "memory://", backend: str | None = None, **settings: Any) -> Any:
    """Returns the connections that an app's batch tasks would have."""
    app = Celery(broker=broker, backend=backend, set_as_current=False)
    app.conf.update(settings)
    return cast(redis.Redis, raw.client(runtime_of(app).store("task"))).connection_pool


@pytest.mark.parametrize(
    "settings",
    [
        {"broker": "redis://h:1/2", "broker_use_ssl": REQUIRED},
        {"broker": "rediss://h:1/2", "broker_use_ssl": REQUIRED},
        {"broker": "rediss://h:1/2?ssl_cert_reqs=CERT_REQUIRED&ssl_ca_certs=/some/ca.pem"},
        {"broker": "redis://h:1/2?ssl_cert_reqs=required&ssl_ca_certs=/some/ca.pem"},
        {"broker": "amqp://h", "backend": "redis://h:1/2", "redis_backend_use_ssl": REQUIRED},
        {
            "redis_batches_url": "redis://h:1/2",
            "backend": "redis://h:1/2",
            "redis_backend_use_ssl": REQUIRED,
        },
        {"redis_batches_url": "redis://h:1/2?ssl=true&ssl_ca_certs=/some/ca.pem"},
    ],
)
def test_tls_comes_along(settings: dict[str, Any]) -> None:
    """However it was asked for; and the name in the certificate is checked."""
    pool = pool_of(**settings)

    assert pool.connection_class is SSLConnection
    found = pool.connection_kwargs
    assert (found["host"], found["port"], found["db"]) == ("h", 1, 2)
    assert found["ssl_cert_reqs"] in ("required", ssl.CERT_REQUIRED)
    assert found["ssl_ca_certs"] == "/some/ca.pem"
    assert found["ssl_check_hostname"] is True
    pool.make_connection()


@pytest.mark.parametrize(
    ("query", "checked"),
    [
        ("ssl_cert_reqs=none", False),
        ("ssl_cert_reqs=CERT_NONE", False),
        ("ssl_check_hostname=false", False),
        ("ssl_check_hostname=true", True),
        ("ssl_cert_reqs=optional", True),
        ("", True),
    ],
)
def test_the_name_in_a_certificate_is_checked_unless_switched_off(
    query: str, checked: bool
) -> None:
    """redis-py before 6 does not by itself."""
    pool = pool_of(redis_batches_url=f"rediss://h/0?{query}")

    assert pool.connection_kwargs["ssl_check_hostname"] is checked


@pytest.mark.parametrize("backend", [False, True])
def test_tls_of_the_other_server_stays_there(backend: bool) -> None:
    """Its files and names are not ours."""
    if backend:
        pool = pool_of("redis://h", "redis://other", redis_backend_use_ssl=REQUIRED)
    else:
        pool = pool_of("redis://h", redis_batches_url="redis://x", broker_use_ssl=REQUIRED)

    assert pool.connection_class is not SSLConnection


@pytest.mark.parametrize("url", ["redis://h", "sentinel://h"])
def test_tls_that_celery_itself_would_not_use_is_refused(url: str) -> None:
    """It connects in plain text, and says nothing."""
    with pytest.raises(ImproperlyConfigured, match=r"broker_use_ssl = True .* plain text"):
        pool_of(url, broker_use_ssl=True, broker_transport_options={"master_name": "shop"})


def test_a_prefix_that_keeps_apps_apart_is_not_lost() -> None:
    """Two apps with one namespace would run each other's calls."""
    prefix = {"global_keyprefix": "one:"}
    with pytest.raises(ImproperlyConfigured, match="set redis_batches_namespace"):
        pool_of("redis://h", broker_transport_options=prefix)
    assert pool_of("redis://h", broker_transport_options=prefix, redis_batches_namespace="one")
    assert pool_of("amqp://h", "redis://h", broker_transport_options=prefix)


def test_user_and_password_of_settings_come_along() -> None:
    """Where the URL has none."""
    found = pool_of("redis://h", broker_user="me", broker_password="secret").connection_kwargs
    assert (found["username"], found["password"]) == ("me", "secret")

    found = pool_of(backend="redis://", redis_host="h", redis_password="pw").connection_kwargs
    assert (found["host"], found["password"]) == ("h", "pw")

    found = pool_of("redis://:own@h", broker_password="other").connection_kwargs
    assert found["password"] == "own"


@pytest.mark.parametrize(
    "settings",
    [
        {"backend": "redis://me:pw@h", "redis_backend_credential_provider": Provider()},
        {"broker": f"redis://me:pw@h?credential_provider={__name__}.Provider"},
    ],
)
def test_a_provider_of_passwords_comes_along(settings: dict[str, Any]) -> None:
    """An object or its name; the URL's password is not used then, as in Celery."""
    found = pool_of(**settings).connection_kwargs

    assert isinstance(found["credential_provider"], Provider)
    assert not found.keys() & {"username", "password"}


def test_names_and_keepalives_come_along_and_timeouts_do_not() -> None:
    """The broker's wait for a message is not ours for a reply."""
    options = {
        "client_name": "me",
        "socket_keepalive_options": {4: 60},
        "socket_timeout": 120,
        "health_check_interval": 5,
        "visibility_timeout": 7,
    }
    found = pool_of("redis://h", broker_transport_options=options).connection_kwargs

    assert found["client_name"] == "me"
    assert found["socket_keepalive_options"] == {4: 60}
    assert found["socket_timeout"] == found["socket_connect_timeout"] == 2
    assert "health_check_interval" not in found


def test_sentinels_have_their_own_user_and_tls() -> None:
    """The URL's, and TLS, are for the server that they name, as in Celery."""
    pool = pool_of(
        "sentinel://:pw@a:1/3;sentinel://b",
        broker_use_ssl=REQUIRED,
        broker_transport_options={
            "master_name": "shop",
            "min_other_sentinels": 1,
            "sentinel_kwargs": {"username": "s", "password": "own", "ssl": True},
        },
        result_backend_transport_options={"master_name": "other"},
    )

    assert pool.connection_class is SentinelSSLConnection
    assert pool.service_name == "shop"
    found = pool.connection_kwargs
    assert (found["password"], found["db"], found["ssl_ca_certs"]) == ("pw", 3, "/some/ca.pem")
    manager = pool.sentinel_manager
    assert manager.min_other_sentinels == 1
    places = [each.connection_pool.connection_kwargs for each in manager.sentinels]
    assert [(each["host"], each["port"]) for each in places] == [("a", 1), ("b", 26379)]
    assert {each["password"] for each in places} == {"own"}
    assert all(each.connection_pool.connection_class is SSLConnection for each in manager.sentinels)
    pool.make_connection()


def test_sentinels_of_the_result_backend_are_asked_for_its_server() -> None:
    """Not for the broker's."""
    pool = pool_of(
        "amqp://h",
        "sentinel://a/0?ssl=true",
        broker_transport_options={"master_name": "broker"},
        result_backend_transport_options={"master_name": "backend"},
    )

    assert pool.service_name == "backend"
    assert pool.connection_class is SentinelSSLConnection


def test_a_socket_takes_no_options_of_tcp() -> None:
    """Celery leaves them out, too."""
    options = {"socket_keepalive": True, "socket_keepalive_options": {4: 60}}
    pool = pool_of("redis+socket:///run/redis?virtual_host=2", broker_transport_options=options)

    assert pool.connection_class is UnixConnection
    assert (pool.connection_kwargs["path"], pool.connection_kwargs["db"]) == ("/run/redis", 2)
    pool.make_connection()


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"broker": "redis://h", "broker_use_ssl": {"ca_certs": "/ca.pem"}}, "ca_certs"),
        ({"redis_batches_url": "redis://h/0?flavour=mint"}, "flavour"),
        ({"redis_batches_url": "rediss://h/0?ssl_cert_reqs=never"}, "never"),
    ],
)
def test_what_no_connection_understands_is_refused(settings: dict[str, Any], what: str) -> None:
    """Instead of being lost, or an error at the first call."""
    with pytest.raises(ImproperlyConfigured, match=f"does not understand: .*{what}"):
        pool_of(**settings)


def test_a_password_that_is_not_encoded_is_not_shown() -> None:
    """A / ends the host, and what stands before it is taken for a port."""
    with pytest.raises(ImproperlyConfigured, match="%2F") as caught:
        pool_of(redis_batches_url="redis://:secret/more@h:6379/0")
    assert "secret" not in str(caught.value)
