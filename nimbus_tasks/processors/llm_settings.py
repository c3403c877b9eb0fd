"""What the ``llm`` processor is told: which model, where, how to write, what tokens cost."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nimbus_tasks.core.errors import UsageError
from nimbus_tasks.core.records import Usage

DEFAULT_BASE_URL = "https://api.openai.com/v1"
#: Where the key may be; one that is set and empty means "no key". OpenAI's own goes to nobody else.
KEY_VARIABLE, OPENAI_KEY = "NIMBUS_LLM_API_KEY", "OPENAI_API_KEY"
#: Characters of the house style: it is sent with every page, and paid for as often.
MAX_INSTRUCTIONS = 20_000
_SHORTEST_KEY = 12
_PER_MILLION = 1_000_000


@dataclass(frozen=True)
class LlmSettings:
    """What ``nimbus.llm`` sets. ``timeout`` is seconds for one answer, ``max_tokens`` the longest
    answer; prices are of a million tokens, in any one currency, ``None`` where not known.
    ``instructions`` is the text of the house style; a ``language`` of ``None`` is the page's."""

    model: str
    base_url: str = DEFAULT_BASE_URL
    timeout: float = 60.0
    max_tokens: int = 1000
    temperature: float | None = None
    instructions: str = ""
    language: str | None = None
    price_in: float | None = None
    price_out: float | None = None

    @classmethod
    def read(cls, given: Mapping[str, Any], root: Path) -> LlmSettings:
        """The settings as ``nimbus.llm`` has them, each checked for its type; ``root`` is where a
        file of instructions is looked for. Raises :class:`UsageError`."""
        if not given.get("model"):
            raise UsageError(
                "the llm processor needs to know which model to ask",
                advice="Set nimbus.llm.model in invoke.yaml, or INVOKE_NIMBUS_LLM_MODEL.",
            )
        options = dict(given)
        if "instructions" in options:
            options["instructions"] = _instructions(options["instructions"], root)
        if "base_url" in options:
            options["base_url"] = options["base_url"].rstrip("/")
        return cls(**options)

    def usage(self, tokens_in: int, tokens_out: int) -> Usage:
        """So many tokens, with what they cost."""
        if self.price_in is None and self.price_out is None:
            return Usage(tokens_in, tokens_out)
        cost = tokens_in * (self.price_in or 0) + tokens_out * (self.price_out or 0)
        return Usage(tokens_in, tokens_out, round(cost / _PER_MILLION, 8))


def key_in(environment: Mapping[str, str], base_url: str) -> str | None:
    """The key of the endpoint, from the environment alone; ``None`` for a server without one."""
    if KEY_VARIABLE in environment:
        return environment[KEY_VARIABLE] or None
    return environment.get(OPENAI_KEY) or None if base_url == DEFAULT_BASE_URL else None


def secret_keys(environment: Mapping[str, str]) -> list[str]:
    """The keys that no text may show. A short word, as a server that checks no keys is given, is
    none: it would be masked wherever it stands."""
    keys = (environment.get(name, "") for name in (KEY_VARIABLE, OPENAI_KEY))
    return [key for key in keys if len(key) >= _SHORTEST_KEY]


def _instructions(value: str, root: Path) -> str:
    """The house style itself, or the file that holds it."""
    is_line = "\n" not in value and len(value) < 400
    path = root / value.strip()
    text = value
    if is_line and path.is_file():
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read nimbus.llm.instructions {path}: {error}") from error
    elif is_line and " " not in value.strip() and path.suffix in (".md", ".txt"):
        raise UsageError(
            f"nimbus.llm.instructions names {value.strip()}, and there is no such file",
            advice=f"It is looked for in {root}.",
        )
    if len(text) > MAX_INSTRUCTIONS:
        raise UsageError(
            f"nimbus.llm.instructions has {len(text):,} characters, more than {MAX_INSTRUCTIONS:,}",
            advice="They are sent, and paid for, with every page: keep to what matters.",
        )
    return text.strip()
