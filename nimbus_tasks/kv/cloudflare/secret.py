"""The API token taken out of texts: as it is, in the forms in which programs write it down, and
the beginning of it that a message was cut off in."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator
from functools import lru_cache
from itertools import takewhile
from urllib.parse import quote

#: By so many characters a long token is known, of which a text may have only the beginning.
_KNOWN_BY, _LONG = 8, 16
MASK = "***"


def without_secret(text: str, secret: str | None) -> str:
    """The text with :data:`MASK` in the place of ``secret``, or of a form of it."""
    for form in _forms(secret) if secret else ():
        beginning = form[:_KNOWN_BY] if len(form) >= _LONG else form
        at = text.find(beginning)
        while at >= 0:
            alike = takewhile(lambda pair: pair[0] == pair[1], zip(form, text[at:], strict=False))
            end = at + sum(1 for _ in alike)
            text = f"{text[:at]}{MASK}{text[end:]}"
            at = text.find(beginning, at + len(MASK))
    return text


@lru_cache(maxsize=4)
def _forms(secret: str) -> tuple[str, ...]:
    # A variable may hold bytes that are no text, as the system gives them.
    in_bytes = secret.encode("utf-8", "surrogateescape")
    plain = (secret, quote(in_bytes, safe=""), html.escape(secret), repr(secret)[1:-1])
    return tuple(dict.fromkeys([*plain, *_in_base64(in_bytes)]))


def _in_base64(secret: bytes) -> Iterator[str]:
    """What every base64 of a text with the secret in it has, wherever in its groups of three bytes
    the secret begins; none of a short one, of which a few letters would be left."""
    for before in range(3 if len(secret) >= _LONG else 0):
        for encode in (base64.b64encode, base64.urlsafe_b64encode):
            whole = encode(bytes(before) + secret).decode()
            # The groups at the ends hold bits of what is beside it as well.
            yield whole[4 if before else 0 : -4]
