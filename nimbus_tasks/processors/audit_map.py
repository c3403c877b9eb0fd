"""Reading a content map as the audit needs it: what is there and readable, and nothing raised.

A map comes from somebody else's scanner, so any value may be absent or of the wrong type. What is
wrong with the page is for :mod:`~nimbus_tasks.processors.audit_checks` to say.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from unicodedata import east_asian_width
from urllib.parse import SplitResult, unquote, urljoin, urlsplit

Block = Mapping[str, Any]

HEADING_LEVELS = {"h1": 1, "h2": 2, "h3": 3, "h4": 4, "h5": 5, "h6": 6}

_INDEX_OR_SUFFIX = re.compile(r"((^|/)index)?(\.(html?|php|aspx?))?$")


@dataclass(frozen=True)
class ContentMap:
    """What is readable of a content map; ``head`` and ``blocks`` are None where it has none.

    ``blocks`` all have a type, in document order. ``images`` are those that lie within a link or
    an h1, by that one's selector. ``scope`` is the selector of what was scanned.
    """

    head: Mapping[str, Any] | None
    blocks: Sequence[Block] | None
    url: str
    route: str
    scope: str
    images: Mapping[str, Sequence[Block]]

    @classmethod
    def read(cls, extraction: object) -> ContentMap:
        """What can be read of an extraction, whatever it is."""
        given: Mapping[str, Any] = extraction if isinstance(extraction, Mapping) else {}
        head, blocks = given.get("head"), _readable(given.get("blocks"))
        return cls(
            head=head if isinstance(head, Mapping) else None,
            blocks=blocks,
            url=text_of(given.get("url")) or "",
            route=text_of(given.get("route")) or "",
            scope=text_of(given.get("main_selector")) or "body",
            images=_enclosed_images(blocks or ()),
        )

    def head_text(self, name: str) -> str | None:
        """A field of the head, as :func:`text_of` reads it; None where the map has no head."""
        return None if self.head is None else text_of(self.head.get(name))

    def of_type(self, *types: str) -> list[Block]:
        """The blocks of these types."""
        return [block for block in self.blocks or () if block["type"] in types]

    def name_of(self, block: Block, key: str) -> str | None:
        """What a link or h1 is read out as: its text, else an image's; None if unreadable."""
        text = text_of(block.get(key))
        if text != "":
            return text
        alts = (text_of(image.get("alt")) for image in self.images.get(selector_of(block), ()))
        return next((alt for alt in alts if alt), "")

    def own_path(self) -> str | None:
        """The path that the page is served at, by its route, else by its URL.

        None where neither tells one, or it is a pattern for many pages. A source path does not
        tell it: which of its folders is the site's root is unknown.
        """
        own = self.route or self.url
        address = web_address(own)
        path = address.path or "/" if address else own.partition("?")[0]
        return path if path and not any(mark in path for mark in "[]{}*:") else None

    def own_host(self) -> str:
        """The site's host by the page's canonical URL, else by its own, without ``www.``."""
        return host_of(self.head_text("canonical") or "") or host_of(self.url)


def text_of(value: object) -> str | None:
    """A text without the space round it, "" for what is absent; None for what is no text."""
    if value is None:
        return ""
    return value.strip() if isinstance(value, str) else None


def selector_of(block: Block) -> str:
    """Where a block is; its type where the map does not say."""
    return text_of(block.get("selector")) or str(block["type"])


def folded(text: str) -> str:
    """A text for comparing: case and white space left out of account."""
    return " ".join(text.split()).casefold()


def clipped(text: str, length: int) -> str:
    """A text of at most so many characters, with an ellipsis where it was longer."""
    return text if len(text) <= length else f"{text[: length - 1]}…"


def width_of(text: str) -> int:
    """The columns that a text takes: wide (East Asian) characters count as two."""
    if text.isascii():
        return len(text)
    return len(text) + sum(east_asian_width(character) in "WF" for character in text)


def web_address(text: str) -> SplitResult | None:
    """An absolute http or https URL taken apart; None for anything else."""
    try:
        parts = urlsplit(text)
    except ValueError:
        return None
    return parts if parts.scheme in ("http", "https") and parts.hostname else None


def host_of(url: str) -> str:
    """The host of an absolute URL without ``www.``; "" for anything else."""
    address = web_address(url)
    return (address.hostname or "").removeprefix("www.") if address else ""


def absolute(base: str, link: str) -> str | None:
    """A relative link as an absolute URL, where the base makes it one."""
    try:
        joined = urljoin(base, link)
    except ValueError:
        return None
    return joined if web_address(joined) else None


def normal_path(path: str) -> str:
    """A path without what servers ignore: ``/a``, ``/a/``, ``/a.html``, ``/A/index.html`` are one.

    The site's root is "".
    """
    return _INDEX_OR_SUFFIX.sub("", unquote(path).strip("/").casefold(), count=1)


def _readable(blocks: object) -> list[Block] | None:
    if not isinstance(blocks, list):
        return None
    readable = [
        block
        for block in blocks
        if isinstance(block, Mapping) and isinstance(block.get("type"), str)
    ]
    return readable if readable or not blocks else None


def _enclosed_images(blocks: Iterable[Block]) -> dict[str, list[Block]]:
    images: dict[str, list[Block]] = {}
    latest: dict[str, str] = {}  # the last of each kind: it comes before what lies within it
    for block in blocks:
        if block["type"] in ("a", "h1"):
            latest[block["type"]] = selector_of(block)
        elif block["type"] == "img":
            for outer in latest.values():
                if selector_of(block).startswith(f"{outer} > "):
                    images.setdefault(outer, []).append(block)
    return images
