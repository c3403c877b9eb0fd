"""The store on Cloudflare Workers KV, over its REST API."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.kv.store import Store

if TYPE_CHECKING:
    from nimbus_tasks.kv.cloudflare.client import KVClient
    from nimbus_tasks.kv.cloudflare.faults import Service
    from nimbus_tasks.kv.cloudflare.queues import QueueClient
    from nimbus_tasks.kv.cloudflare.transport import Transport

OFFICIAL_API = "https://api.cloudflare.com/client/v4"
TOKEN_VARIABLE, ACCOUNT_VARIABLE = "CLOUDFLARE_API_TOKEN", "CLOUDFLARE_ACCOUNT_ID"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def config_name() -> str:
    """The configuration file, as a person is told to look into it."""
    return os.environ.get("NIMBUS_CONFIG") or ".nimbus/project-config.json"


def open_cloudflare(
    config: Mapping[str, Any],
    environment: Mapping[str, str],
    folder: Path,
    on_wait: Callable[[str], None],
    *,
    shared: bool = False,
) -> Store:
    """The store that a configuration's ``cloudflare`` part names; nothing is sent yet.

    ``folder`` is where the journal of recent writes lies; ``shared`` says that other machines write
    the same records. Raises :class:`UsageError` as :func:`open_client` does.
    """
    from nimbus_tasks.kv.cloudflare.journal import Journal
    from nimbus_tasks.kv.cloudflare.store import CloudflareStore

    client = open_client(config, environment, on_wait)
    # Another server may have a namespace of the same id, as a local one has that of production.
    where = f"{api_prefix(config, environment)} {checked_namespace(config)}"
    name = hashlib.sha256(where.encode()).hexdigest()[:12]
    journal = Journal(folder / f"recent-{name}.sqlite3")
    return CloudflareStore(client, journal, paced=not client.is_local, shared=shared)


def open_client(
    config: Mapping[str, Any],
    environment: Mapping[str, str],
    on_wait: Callable[[str], None] = lambda _: None,
) -> KVClient:
    """A client of the namespace that a configuration names.

    The token comes from the environment alone; only a server on this machine can do without.
    Raises :class:`UsageError` where something is missing or is no id.
    """
    from nimbus_tasks.kv.cloudflare.client import KVClient
    from nimbus_tasks.kv.cloudflare.faults import KV

    namespace = checked_namespace(config)
    return KVClient(_transport(config, environment, on_wait, KV), namespace)


def open_queue(
    config: Mapping[str, Any],
    environment: Mapping[str, str],
    on_wait: Callable[[str], None] = lambda _: None,
) -> QueueClient:
    """A client of the queue that a configuration names. Raises :class:`UsageError` as
    :func:`open_client` does."""
    from nimbus_tasks.kv.cloudflare.faults import QUEUES
    from nimbus_tasks.kv.cloudflare.queues import QueueClient

    queue_id = checked_queue(config)
    return QueueClient(_transport(config, environment, on_wait, QUEUES), queue_id)


def _transport(
    config: Mapping[str, Any],
    environment: Mapping[str, str],
    on_wait: Callable[[str], None],
    service: Service,
) -> Transport:
    from nimbus_tasks.kv.cloudflare.transport import Transport, checked_address

    prefix = api_prefix(config, environment)
    token = environment.get(TOKEN_VARIABLE) or None
    if token is None and not checked_address(prefix).is_loopback:
        raise UsageError(
            "there is no API token for Cloudflare",
            advice=f"Set {TOKEN_VARIABLE} to one with the permission {service.permission}.",
        )
    return Transport(prefix=prefix, token=token, service=service, on_wait=on_wait)


def check_config(config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
    """Raises :class:`UsageError` where a configuration names no namespace or no account."""
    from nimbus_tasks.kv.cloudflare.transport import checked_address

    checked_namespace(config)
    checked_address(api_prefix(config, environment))


def checked_namespace(config: Mapping[str, Any]) -> str:
    """The id of the KV namespace. Raises :class:`UsageError`."""
    return _checked_id(config, "namespace_id", "wrangler kv namespace list")


def checked_queue(config: Mapping[str, Any]) -> str:
    """The id of the queue. Raises :class:`UsageError`."""
    return _checked_id(config, "queue_id", "wrangler queues list")


def _checked_id(config: Mapping[str, Any], name: str, shown_by: str) -> str:
    found = config.get(name)
    if not isinstance(found, str) or not _ID.fullmatch(found):
        option = name.replace("_", "-")
        raise UsageError(
            f"'cloudflare.{name}' is missing from {config_name()}, or is no id",
            advice=f"Give nimbus.init --{option}=ID, as '{shown_by}' shows it.",
        )
    return found


def api_prefix(config: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """The part of the address before ``/storage/kv`` or ``/queues``. Raises :class:`UsageError`."""
    base = config.get("api_base")
    if base:
        if not isinstance(base, str):
            raise UsageError(
                f"'cloudflare.api_base' in {config_name()} is no address",
                advice="Leave it out for Cloudflare itself.",
            )
        return base.rstrip("/")
    account = config.get("account_id") or environment.get(ACCOUNT_VARIABLE)
    if not isinstance(account, str) or not _ID.fullmatch(account):
        raise UsageError(
            "the Cloudflare account is not known, or is no id",
            advice=f"Set {ACCOUNT_VARIABLE}, or 'cloudflare.account_id' in {config_name()}.",
        )
    return f"{OFFICIAL_API}/accounts/{account}"
