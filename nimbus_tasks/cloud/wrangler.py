"""Wrangler, Cloudflare's own command line: where it is, what it is told, what it says."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbus_tasks.core.errors import StoreError, UsageError
from nimbus_tasks.core.processes import in_own_group, kill_group
from nimbus_tasks.core.wire import mapping_field
from nimbus_tasks.kv.cloudflare import TOKEN_VARIABLE
from nimbus_tasks.kv.cloudflare.secret import without_secret

CONFIG_NAME = "wrangler.jsonc"
#: What stands for a namespace that is not made yet.
NO_NAMESPACE = "0" * 32
INSTALL_ADVICE = "Install it in the project with: npm install --save-dev wrangler"
NEWER_ADVICE = "Get the newest with: npm install --save-dev wrangler@latest (it wants Node 22)."
NODE_ADVICE = "Get Node 22 or newer from https://nodejs.org."
OLDEST_MAJOR = 4
#: A version is said within a second or two; Node that starts from a slow disk takes some more.
VERSION_SECONDS = 30.0
PERMISSIONS = "Workers Scripts: Edit, Workers KV Storage: Edit, Queues: Edit"

_STRING_OR_COMMENT = re.compile(r'("(?:\\.|[^"\\])*")|//[^\n]*|/\*.*?\*/', re.DOTALL)
_STRING_OR_LAST_COMMA = re.compile(r'("(?:\\.|[^"\\])*")|,(?=\s*[}\]])', re.DOTALL)
_ESCAPES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")
_LABEL = re.compile(r"^(✘ )?(\[ERROR\]|\[wrangler:error\]) ")
_NOT_LOGGED_IN = re.compile(
    r"not authenticated|wrangler login|set a CLOUDFLARE_API_TOKEN|Not logged in", re.IGNORECASE
)
_OLD_NODE = re.compile(r"requires at least Node")
_PLACE = re.compile(r"\S+:\d+:\d+:")
_VERSION = re.compile(r"\b(\d+)\.\d+\.\d+\b")
_REFUSED_TOKEN = re.compile(r"code: (10000|9109|10001)\b|Authentication error", re.IGNORECASE)


@dataclass(frozen=True)
class WorkerConfig:
    """What ``wrangler.jsonc`` says of the Worker, as far as these tasks need it."""

    path: Path
    name: str
    project_id: str
    namespace_id: str
    queues: Sequence[str]
    variables: Mapping[str, Any]

    @property
    def folder(self) -> Path:
        """The folder of the Worker."""
        return self.path.parent

    @property
    def has_namespace(self) -> bool:
        """Whether its KV namespace has been made."""
        return self.namespace_id != NO_NAMESPACE


def load_worker(folder: Path) -> WorkerConfig:
    """The Worker's configuration. Raises :class:`UsageError` where there is none, or a bad one."""
    path = folder / CONFIG_NAME
    try:
        config = parse_jsonc(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise UsageError(
            f"there is no Worker in {folder} (no {CONFIG_NAME})",
            advice="Write one with: invoke nimbus.cloud.init",
        ) from None
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read: {error}") from error
    bound = [n for n in _objects(config, "kv_namespaces") if n.get("binding") == "KV"]
    queues = mapping_field(config.get("queues"))
    variables = mapping_field(config.get("vars"))
    names = [q.get("queue") for part in ("producers", "consumers") for q in _objects(queues, part)]
    found = (config.get("name"), variables.get("PROJECT_ID"), bound[0].get("id") if bound else None)
    for value, what in zip(found, ("name", "vars.PROJECT_ID", "kv_namespaces' KV"), strict=True):
        if not isinstance(value, str) or not value:
            raise UsageError(f"{path} has no {what}", advice="Compare it with a new one.")
    return WorkerConfig(
        path=path,
        name=str(found[0]),
        project_id=str(found[1]),
        namespace_id=str(found[2]),
        queues=tuple(dict.fromkeys(name for name in names if isinstance(name, str))),
        variables=variables,
    )


def parse_jsonc(text: str) -> dict[str, Any]:
    """JSON with comments and last commas. Raises :class:`ValueError`."""
    plain = _STRING_OR_COMMENT.sub(lambda found: found[1] or "", text)
    config = json.loads(_STRING_OR_LAST_COMMA.sub(lambda found: found[1] or "", plain))
    if not isinstance(config, dict):
        raise ValueError("it holds no JSON object")  # noqa: TRY004 - a value, whatever its type
    return config


def find_wrangler(*folders: Path) -> str:
    """The program: of the project's own ``node_modules``, or else of the PATH.

    Raises :class:`UsageError` where it, or the Node that it needs, is missing.
    """
    if shutil.which("node") is None:
        raise UsageError(
            "Node is not installed, which wrangler needs",
            advice=NODE_ADVICE,
        )
    for folder in folders:
        if found := shutil.which("wrangler", path=str(folder / "node_modules" / ".bin")):
            return found
    if found := shutil.which("wrangler"):
        return found
    raise UsageError("wrangler is not installed", advice=INSTALL_ADVICE)


def wrangler_version(*folders: Path) -> str:
    """The version of the program that :func:`find_wrangler` finds, by starting it.

    Raises :class:`UsageError` where it does not run, for the want of a newer Node say, says nothing
    for :data:`VERSION_SECONDS`, or is of before :data:`OLDEST_MAJOR`.
    """
    program = find_wrangler(*folders)
    try:
        said = run_wrangler(program, Path.cwd(), ("--version",), seconds=VERSION_SECONDS)
    except StoreError as error:
        raise UsageError(
            f"wrangler does not run: {error.message}", advice=INSTALL_ADVICE
        ) from error
    found = _VERSION.search(said)
    if found is None or int(found[1]) < OLDEST_MAJOR:
        which = "of no version" if found is None else found[0]
        raise UsageError(f"wrangler is {which}, and {OLDEST_MAJOR} is needed", advice=NEWER_ADVICE)
    return found[0]


def run_wrangler(
    program: str,
    folder: Path,
    arguments: Sequence[str],
    secret: str | None = None,
    *,
    seconds: float | None = None,
) -> str:
    """Run wrangler in ``folder`` and return what it says; ``secret`` goes to its stdin.

    Raises :class:`UsageError` where nobody is logged in, Node is too old for it, or it has not
    ended after so many ``seconds``; :class:`StoreError` for any other refusal.
    """
    what = f"wrangler {' '.join(arguments[:2])}"
    try:
        process = subprocess.Popen(
            [program, *arguments],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env={**os.environ, "NO_COLOR": "1", "CI": "1"},  # it asks nothing
            **in_own_group(),  # to be ended with all that it has started
        )
    except OSError as error:
        raise UsageError(
            f"cannot start wrangler: {error.strerror}", advice=INSTALL_ADVICE
        ) from error
    with process:
        try:
            said, _ = process.communicate(secret or "", timeout=seconds)
        except subprocess.TimeoutExpired:
            raise UsageError(
                f"{what} has not ended after {seconds:g} s",
                advice=f"See what holds it up, by hand: npx {what}",
            ) from None
        finally:
            kill_group(process)
            process.wait()
    said = _ESCAPES.sub("", said)
    for hidden in (secret, os.environ.get(TOKEN_VARIABLE)):
        said = without_secret(said, hidden)
    if process.returncode == 0:
        return said
    if (too_old := old_node(said)) is not None:
        raise too_old
    if _NOT_LOGGED_IN.search(said):
        raise UsageError(
            "nobody is logged in to Cloudflare",
            advice="Run: npx wrangler login, or set CLOUDFLARE_API_TOKEN.",
        )
    advice = f"The token needs: {PERMISSIONS}." if _REFUSED_TOKEN.search(said) else None
    raise StoreError(f"{what}: {last_words(said)}", advice=advice)


def old_node(said: str) -> UsageError | None:
    """That Node is too old for wrangler, if that is what it has ``said``."""
    if not _OLD_NODE.search(said):
        return None
    return UsageError(last_words(said), advice=NODE_ADVICE)


def last_words(said: str) -> str:
    """The line of a log that tells what was wrong."""
    lines = [line.strip(" │┃\t") for line in _ESCAPES.sub("", said).splitlines()]
    lines = [line for line in lines if line]
    errors = [line for line in lines if "[ERROR]" in line][-1:]  # the last: warnings go before
    errors += [line for line in lines if re.search(r"error|✘|must|cannot", line, re.IGNORECASE)]
    line = (errors or lines or ["it said nothing"])[0]
    after = [*lines[lines.index(line) + 1 :], ""][0] if lines else ""
    if "Cloudflare API" in line or _PLACE.fullmatch(after):
        line = f"{line} {after}".strip()  # what the API answered, or where in the code it is
    return _LABEL.sub("", line)[:300]


def _objects(value: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    found = value.get(name)
    return [one for one in found if isinstance(one, dict)] if isinstance(found, list) else []
