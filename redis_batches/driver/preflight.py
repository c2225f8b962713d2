"""Looks at the server before a worker trusts it with requests."""

from __future__ import annotations

from logging import getLogger
from typing import Any

import redis

from redis_batches.core.errors import UnsupportedServer
from redis_batches.driver.server_errors import translated

logger = getLogger(__name__)

#: The first Redis with every command that the scripts use; each Valkey has them.
OLDEST = (6, 2)


def check_server(client: redis.Redis) -> None:
    """Refuses a server that would lose what waits in it; warns of one that may.

    An ACL that forbids INFO costs one warning.

    Raises:
        UnsupportedServer: It is too old, or evicts keys that have no time to live.
        StoreError: It could not be reached.
    """
    with translated("look at the server"):
        try:
            info: dict[str, Any] = client.info()
        except redis.exceptions.NoPermissionError:
            logger.warning(
                "the ACL forbids INFO, so nobody checked the server: it has to be Redis 6.2 or "
                "later or Valkey, with maxmemory-policy noeviction and with appendonly yes"
            )
            return
    version = str(info.get("redis_version", "0"))
    if tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
        raise UnsupportedServer(f"Redis {version} is too old: 6.2 or later, or Valkey, is needed")
    policy = str(info.get("maxmemory_policy", ""))
    if policy.startswith("allkeys"):
        raise UnsupportedServer(
            f"maxmemory-policy is {policy}, which deletes waiting requests when memory is short: "
            "run CONFIG SET maxmemory-policy noeviction, or use another server for "
            "redis_batches_url"
        )
    if not int(info.get("aof_enabled", 0)):
        logger.warning(
            "appendonly is off: what waits is lost if the server is restarted; "
            "run CONFIG SET appendonly yes and add it to the server's configuration"
        )
