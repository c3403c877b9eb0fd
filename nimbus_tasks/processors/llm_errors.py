"""What a model's server says is wrong, read in each of the forms that servers have for it.

OpenAI answers ``{"error": {"message", "type", "param", "code"}}``; Gemini has that in a list,
Ollama a text in its place, older versions of vLLM its fields at the top, and FastAPI a ``detail``.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nimbus_tasks.core.wire import dump_json, mapping_field
from nimbus_tasks.processors.llm_prompt import RESPONSE_FORMATS, Dialect

#: Settings that are wrong for every page, where a server names one as the fault.
_SETTINGS = ("model", "temperature", "max_tokens", "max_completion_tokens")
_FORMAT_WORDS = ("response_format", "response format", "json_schema", "json_object")
_TOO_LONG = ("context length", "context_length", "context size", "context window")


@dataclass(frozen=True)
class ErrorAnswer:
    """An error: its HTTP status, its message as it came, and what else is said of its kind."""

    status: int
    message: str
    kind: str = ""
    param: str = ""

    @property
    def is_of_quota(self) -> bool:
        """Whether the account, and not its speed, is at its end."""
        return self.status == 402 or (
            self.status == 429 and ("insufficient_quota" in self.kind or "billing" in self.kind)
        )

    @property
    def is_of_key(self) -> bool:
        """Whether the key is refused. Some do it with a 400."""
        return self.status == 401 or (
            self.status == 400
            and ("invalid_api_key" in self.kind or "api key" in self.message.lower())
        )

    @property
    def is_of_length(self) -> bool:
        """Whether the page is longer than the model can read. Servers tell that as a fault of
        max_tokens, but it is none of the setting: shorter pages leave room enough."""
        text = f"{self.kind} {self.message}".lower()
        return any(words in text for words in _TOO_LONG)

    @property
    def is_missed_schema(self) -> bool:
        """Whether it was the model that did not keep to the form."""
        return "json_validate_failed" in self.kind

    @property
    def setting(self) -> str | None:
        """The setting of ours with which every page would be refused, if that is the fault."""
        if self.param in _SETTINGS and not self.is_of_length:
            return self.param.replace("max_completion_tokens", "max_tokens")
        return "model" if "model_not_found" in self.kind else None

    def taught(self, dialect: Dialect) -> Dialect:
        """The dialect to speak from now on: another one where the form of the request was refused.
        Some versions of llama.cpp tell that with a 500."""
        told = self.message.lower()
        if self.status not in (400, 422, 500, 501) or self.is_of_length or self.is_missed_schema:
            return dialect
        if "max_completion_tokens" in told and dialect.tokens == "max_tokens":
            return replace(dialect, tokens="max_completion_tokens")
        if any(words in told for words in _FORMAT_WORDS):
            return replace(dialect, format=min(dialect.format + 1, len(RESPONSE_FORMATS) - 1))
        return dialect


def error_in(status: int, document: object, text: str) -> ErrorAnswer | None:
    """The error that an answer is; ``None`` for a 200 that is none. ``text`` is all of it."""
    if isinstance(document, list) and document:
        document = document[0]
    top = mapping_field(document)
    error = top.get("error")
    if status == 200:
        if not error or top.get("choices"):
            return None
        status = _status_in(error)
    if isinstance(error, str):
        return ErrorAnswer(status, error)
    fields = mapping_field(error) or top
    message = fields.get("message") or fields.get("detail") or text
    return ErrorAnswer(
        status,
        message if isinstance(message, str) else dump_json(message),
        f"{fields.get('code')} {fields.get('type')}",
        str(fields.get("param")),
    )


def _status_in(error: object) -> int:
    """The status that an error would have had which came with a 200: the answer had been begun
    before it failed."""
    code = mapping_field(error).get("code")
    return code if isinstance(code, int) and 400 <= code < 600 else 502
