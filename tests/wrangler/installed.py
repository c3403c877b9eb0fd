"""What is installed of wrangler, Cloudflare's own command line, and how a test is to run it.

It is installed by ``.ci/run``, or by :data:`INSTALL`, and never by the tests. Where it is missing
they are skipped on a person's machine, and fail in CI.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

HERE = Path(__file__).parent
MODULES = HERE / "node_modules"
INSTALL = "npm ci --prefix tests/wrangler"


def need_wrangler() -> None:
    """Skip the test where the server is not installed; in CI, fail it."""
    if fault := missing():
        reason = f"{fault}; install it with: {INSTALL}"
        if os.environ.get("CI"):
            pytest.fail(f"in CI this is no reason to skip: {reason}", pytrace=False)
        pytest.skip(reason)


def missing() -> str | None:
    """What is not installed as ``package.json`` pins it, in words."""
    pinned: dict[str, str] = json.loads((HERE / "package.json").read_text())["dependencies"]
    for name, version in pinned.items():
        try:
            found = json.loads((MODULES / name / "package.json").read_text())["version"]
        except OSError:
            return f"Cloudflare's local server is not installed ({name} {version} is missing)"
        if found != version:
            return f"Cloudflare's local server is pinned to {name} {version}, but there is {found}"
    if not node().is_file():
        return f"the installation of node {pinned['node']} is not whole: {node()} is missing"
    return None


def node() -> Path:
    """The Node that is pinned with it."""
    return MODULES / "node" / "bin" / "node"


def quiet_environment(folder: Path) -> dict[str, str]:
    """What keeps wrangler from asking, from sending, and from writing elsewhere."""
    return {
        "CI": "1",
        "NO_COLOR": "1",
        "WRANGLER_SEND_METRICS": "false",
        "WRANGLER_SEND_ERROR_REPORTS": "false",
        "X_LOCAL_OBSERVABILITY": "false",
        "CLOUDFLARE_CF_FETCH_ENABLED": "false",
        "XDG_CONFIG_HOME": str(folder / "config"),
        "WRANGLER_LOG_PATH": str(folder / "logs"),
        "WRANGLER_REGISTRY_PATH": str(folder / "registry"),
    }
