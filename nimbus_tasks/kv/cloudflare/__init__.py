"""The store on Cloudflare Workers KV, over its REST API."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.kv.store import Store

OFFICIAL_API = "https://api.cloudflare.com/client/v4/accounts"
TOKEN_VARIABLE, ACCOUNT_VARIABLE = "CLOUDFLARE_API_TOKEN", "CLOUDFLARE_ACCOUNT_ID"
_CONFIG = ".nimbus/project-config.json"
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


def open_cloudflare(
    config: Mapping[str, Any],
    environment: Mapping[str, str],
    folder: Path,
    on_wait: Callable[[str], None],
) -> Store:
    """The store that a configuration's ``cloudflare`` part names.

    The token comes from the environment alone, and is needed but for a server on this machine.
    ``folder`` is where the journal of recent writes lies. Nothing is sent yet. Raises
    :class:`UsageError` where something is missing or is no id.
    """
    from nimbus_tasks.kv.cloudflare.client import KVClient
    from nimbus_tasks.kv.cloudflare.journal import Journal
    from nimbus_tasks.kv.cloudflare.store import CloudflareStore

    namespace = checked_namespace(config)
    prefix = api_prefix(config, environment)
    is_local = is_loopback(prefix)
    token = environment.get(TOKEN_VARIABLE) or None
    if token is None and not is_local:
        raise UsageError(
            "there is no API token for Cloudflare",
            advice=f"Set {TOKEN_VARIABLE} to one with the permission Workers KV Storage: Edit.",
        )
    client = KVClient(prefix=prefix, namespace_id=namespace, token=token, on_wait=on_wait)
    journal = Journal(folder / f"recent-{namespace[:12]}.sqlite3")
    return CloudflareStore(client, journal, paced=not is_local)


def checked_namespace(config: Mapping[str, Any]) -> str:
    """The id of the KV namespace. Raises :class:`UsageError`."""
    namespace = config.get("namespace_id")
    if not isinstance(namespace, str) or not _ID.fullmatch(namespace):
        raise UsageError(
            f"'cloudflare.namespace_id' is missing from {_CONFIG}, or is no id",
            advice="Put the id there that 'wrangler kv namespace list' shows.",
        )
    return namespace


def api_prefix(config: Mapping[str, Any], environment: Mapping[str, str]) -> str:
    """All of the address before ``/storage/kv``. Raises :class:`UsageError`."""
    base = config.get("api_base")
    if base:
        if not isinstance(base, str):
            raise UsageError(f"'cloudflare.api_base' in {_CONFIG} is no address")
        return base.rstrip("/")
    account = config.get("account_id") or environment.get(ACCOUNT_VARIABLE)
    if not isinstance(account, str) or not _ID.fullmatch(account):
        raise UsageError(
            "the Cloudflare account is not known, or is no id",
            advice=f"Set {ACCOUNT_VARIABLE}, or 'cloudflare.account_id' in {_CONFIG}.",
        )
    return f"{OFFICIAL_API}/{account}"


def is_loopback(prefix: str) -> bool:
    """Whether an address is one of this machine, as that of wrangler's local server is."""
    host = urlsplit(prefix).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
