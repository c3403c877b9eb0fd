"""The checks of the audit: each group reads a content map and yields the findings of its rules.

A check says what it measured and where. Which findings are one change is the matter of
:mod:`~nimbus_tasks.processors.audit`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from urllib.parse import unquote

from nimbus_tasks.processors import audit_rules as rules
from nimbus_tasks.processors.audit_map import (
    HEADING_LEVELS,
    Block,
    ContentMap,
    absolute,
    clipped,
    folded,
    host_of,
    normal_path,
    selector_of,
    text_of,
    web_address,
    width_of,
)
from nimbus_tasks.processors.audit_rules import Rule

TITLE, DESCRIPTION = "head > title", 'head > meta[name="description"]'
_CANONICAL, _OG_IMAGE = 'head > link[rel="canonical"]', 'head > meta[property="og:image"]'

#: Characters of the page's text in a message.
_MAX_QUOTE = 60

_HTML_SPACES = re.compile(r"[ \t\n\f\r]+")  # a no-break space is typography, not a stray one
_FILE_NAME = re.compile(r"\S+\.(jpe?g|png|gif|webp|svg|avif|bmp|tiff?|ico)", re.IGNORECASE)
_WORD = re.compile(r"\w+")
_TODO = re.compile(r"\b(TODO|FIXME)\b")
#: Thai, Lao, Khmer, Japanese, Chinese: written without spaces, so their words cannot be counted.
_UNSPACED = re.compile("[\u0e00-\u0eff\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")


@dataclass(frozen=True)
class Finding:
    """One proposed change at one place. ``after`` is there where it follows from the page."""

    rule: Rule
    selector: str
    message: str
    before: str | None = None
    after: str | None = None


def _head(content: ContentMap) -> Iterator[Finding]:
    if content.head is None:
        return
    yield from _title(content.head.get("title"))
    yield from _description(content)
    yield from _canonical(content)
    if content.head_text("ogImage") == "":
        yield Finding(rules.OG_IMAGE_MISSING, _OG_IMAGE, "The page has no og:image.")


def _title(title: object) -> Iterator[Finding]:
    if text_of(title) == "":
        yield Finding(rules.TITLE_MISSING, TITLE, "The page has no title.")
    elif isinstance(title, str):
        yield from _title_text(title)


def _title_text(title: str) -> Iterator[Finding]:
    shown = _HTML_SPACES.sub(" ", title).strip(" ")
    width, label = width_of(shown), f"The title has {_length(shown)}"
    if shown != title:
        message = f"The title's {len(title)} characters have stray white space among them."
        yield Finding(rules.TITLE_WHITE_SPACE, TITLE, message, title, shown)
    if width < rules.TITLE_MIN:
        message = f"{label}, fewer than {rules.TITLE_MIN}."
        yield Finding(rules.TITLE_TOO_SHORT, TITLE, message, shown)
    elif width > rules.TITLE_MAX:
        rule = rules.TITLE_TOO_LONG if width > rules.TITLE_LIMIT else rules.TITLE_SLIGHTLY_LONG
        yield Finding(rule, TITLE, f"{label}, more than {rules.TITLE_MAX}.", shown)


def _description(content: ContentMap) -> Iterator[Finding]:
    text = content.head_text("metaDescription")
    if text is None:
        return
    if not text:
        yield Finding(rules.DESCRIPTION_MISSING, DESCRIPTION, "The page has no meta description.")
        return
    width, fewest, most = width_of(text), rules.DESCRIPTION_MIN, rules.DESCRIPTION_MAX
    label = f"The meta description has {_length(text)}"
    if width < fewest:
        message = f"{label}, fewer than {fewest}."
        yield Finding(rules.DESCRIPTION_TOO_SHORT, DESCRIPTION, message, text)
    elif width > most:
        message = f"{label}, more than {most}."
        yield Finding(rules.DESCRIPTION_TOO_LONG, DESCRIPTION, message, text)
    if folded(text) == folded(content.head_text("title") or ""):
        message = f"{label}, the same as the title."
        yield Finding(rules.DESCRIPTION_IS_TITLE, DESCRIPTION, message, text)


def _canonical(content: ContentMap) -> Iterator[Finding]:
    canonical = content.head_text("canonical")
    if canonical is None:
        return
    if not canonical:
        yield Finding(rules.CANONICAL_MISSING, _CANONICAL, "The page names no canonical URL.")
        return
    address = web_address(canonical)
    if address is None:
        message = f"The canonical URL {_quote(canonical)} is not absolute."
        after = absolute(content.url, canonical)
        yield Finding(rules.CANONICAL_NOT_ABSOLUTE, _CANONICAL, message, canonical, after)
        return
    if address.scheme == "http":
        message = f"The canonical URL {_quote(canonical)} is http, not https."
        yield Finding(rules.CANONICAL_NOT_HTTPS, _CANONICAL, message, canonical, _https(canonical))
    own = content.own_path()
    if own is not None and normal_path(own) != normal_path(address.path):
        rule = rules.CANONICAL_OTHER_PAGE
        if _same_name(own, address.path):
            rule = rules.CANONICAL_OTHER_FOLDER
        message = f"The canonical path is {_quote(address.path or '/')}, the page's {_quote(own)}."
        yield Finding(rule, _CANONICAL, message, canonical)


def _same_name(own: str, canonical: str) -> bool:
    """Whether two paths may be one page in two folders; a home page may move to any folder."""
    name = normal_path(own).rpartition("/")[2]
    return not name or name == normal_path(canonical).rpartition("/")[2]


def _headings(content: ContentMap) -> Iterator[Finding]:
    if content.blocks is None:
        return
    yield from _h1(content)
    for above, heading in pairwise(content.of_type(*HEADING_LEVELS)):
        skipped = HEADING_LEVELS[heading["type"]] - HEADING_LEVELS[above["type"]] - 1
        if skipped > 0:
            text = text_of(heading.get("text"))
            label, levels = _label(heading["type"], text), "level" if skipped == 1 else "levels"
            message = f"{label} follows an {above['type']} and skips {skipped} {levels}."
            yield _at(heading, rules.HEADING_SKIPPED, message, text)


def _h1(content: ContentMap) -> Iterator[Finding]:
    headings = content.of_type("h1")
    if not headings:
        yield Finding(rules.H1_MISSING, content.scope, "The page has 0 h1 headings.")
    empty = [heading for heading in headings if content.name_of(heading, "text") == ""]
    for heading in empty:
        yield _at(heading, rules.H1_EMPTY, "An h1 heading has no text.", "")
    filled = [heading for heading in headings if content.name_of(heading, "text") != ""]
    for heading in filled[1:]:
        message = f"The page has {len(filled)} h1 headings with text, not one."
        yield _at(heading, rules.H1_MULTIPLE, message, text_of(heading.get("text")))


def _images(content: ContentMap) -> Iterator[Finding]:
    # Within a link or h1 an empty alt is right if that has a text, and its fault if it has none.
    enclosed = {id(image) for images in content.images.values() for image in images}
    for image in content.of_type("img"):
        src, alt = text_of(image.get("src")), text_of(image.get("alt"))
        known_as = src or alt
        label = _label("image", known_as)
        if src == "":
            yield _at(image, rules.IMAGE_SRC_MISSING, "An image has no src.", "")
        if image.get("alt") is None:
            yield _at(image, rules.IMAGE_ALT_MISSING, f"{label} has no alt attribute.", known_as)
        elif alt == "" and id(image) not in enclosed:
            yield _at(image, rules.IMAGE_ALT_EMPTY, f"{label} has an empty alt text.", known_as)
        elif alt and _is_file_name(alt, src or ""):
            message = f"The alt text {_quote(alt)} is a file name."
            yield _at(image, rules.IMAGE_ALT_FILE_NAME, message, alt)
        absent = [side for side in ("width", "height") if _is_unsized(image.get(side))]
        if absent:
            message = f"{label} has no {' and no '.join(absent)}."
            yield _at(image, rules.IMAGE_WITHOUT_SIZE, message, known_as)


def _is_file_name(alt: str, src: str) -> bool:
    if _FILE_NAME.fullmatch(alt):
        return True
    stem = src.partition("?")[0].rpartition("/")[2].rpartition(".")[0]
    # "Rolex" for Rolex.png is a name; "DSC_0042" or "hero-2" for a file of that name is none.
    return alt == unquote(stem) and not alt.isalpha() and " " not in alt


def _is_unsized(value: object) -> bool:
    """Whether a width or height is absent or, like ``auto``, none that reserves space."""
    text = text_of(value)
    return text is not None and not text[:1].isdigit()


def _links(content: ContentMap) -> Iterator[Finding]:
    host = content.own_host()
    for link in content.of_type("a"):
        yield from _target(link, host)
        yield from _anchor(link, content)


def _target(link: Block, host: str) -> Iterator[Finding]:
    href, anchor = text_of(link.get("href")), text_of(link.get("anchor")) or ""
    if href is None:
        return
    start = href[:11].lower()
    if not href:
        yield _at(link, rules.LINK_NO_HREF, f"{_label('link', anchor)} has no href.", anchor)
    elif href == "#" and "top" not in folded(anchor).split():  # "back to top" means it
        yield _at(link, rules.LINK_HREF_PLACEHOLDER, "A link has only '#' as its href.", href)
    elif start == "javascript:":
        yield _at(link, rules.LINK_JAVASCRIPT, f"A link runs the script {_quote(href)}.", href)
    elif start.startswith("http://") and host and host_of(href) == host:
        message = f"The link to {_quote(href)} on the page's own host is http, not https."
        yield _at(link, rules.LINK_INSECURE, message, href, _https(href))


def _anchor(link: Block, content: ContentMap) -> Iterator[Finding]:
    href, anchor = text_of(link.get("href")), text_of(link.get("anchor"))
    if not href or anchor is None:
        return  # a link without href is a fault of its own, or an old-fashioned jump mark
    if folded(anchor).strip(" .…:!>»→") in rules.GENERIC_ANCHORS:
        message = f"The link text {_quote(anchor)} does not say where the link leads."
        yield _at(link, rules.LINK_GENERIC_TEXT, message, anchor)
    if content.name_of(link, "anchor") != "":
        return
    images = content.images.get(selector_of(link), ())
    if not images:
        yield _at(link, rules.LINK_NO_TEXT, f"The link to {_quote(href)} has no text.", href)
    elif all(image.get("alt") == "" for image in images):  # any other alt is the image's finding
        message = f"The link to {_quote(href)} holds an image with an empty alt text and no more."
        yield _at(link, rules.LINK_IMAGE_NO_ALT, message, href)


def _texts(content: ContentMap) -> Iterator[Finding]:
    yield from _placeholder(TITLE, content.head_text("title"))
    yield from _placeholder(DESCRIPTION, content.head_text("metaDescription"))
    for image in content.of_type("img"):
        yield from _placeholder(selector_of(image), text_of(image.get("alt")))
    texts = list(_outer_texts(content))
    for block, text in texts:
        yield from _placeholder(selector_of(block), text)
    yield from _duplicates((block, text) for block, text in texts if block["type"] in ("p", "li"))
    if content.blocks is not None:
        yield from _thin([text for block, text in texts if block["type"] != "a"], content.scope)


def _outer_texts(content: ContentMap) -> Iterator[tuple[Block, str]]:
    """Blocks with text, without those within another: a text has its links and list items in it."""
    outer = None
    for block in content.of_type(*HEADING_LEVELS, "p", "li", "a"):
        selector, is_link = selector_of(block), block["type"] == "a"
        text = text_of(block.get("anchor" if is_link else "text"))
        if not text or (outer and selector.startswith(outer)):
            continue
        if not is_link:  # a link round a whole card does not stand for the texts in it
            outer = f"{selector} > "
        yield block, text


def _duplicates(texts: Iterable[tuple[Block, str]]) -> Iterator[Finding]:
    seen = set()
    for block, text in texts:
        key = folded(text)
        if len(key) < rules.DUPLICATE_MIN:
            continue
        if key in seen:
            message = f"The {len(text)} characters of {_quote(text)} are on the page already."
            yield _at(block, rules.DUPLICATE_TEXT, message, text)
        seen.add(key)


def _thin(texts: Sequence[str], scope: str) -> Iterator[Finding]:
    words = sum(len(text.split()) for text in texts)
    if words < rules.THIN_WORDS and not any(_UNSPACED.search(text) for text in texts):
        message = f"The page has {words} words of text, fewer than {rules.THIN_WORDS}."
        yield Finding(rules.THIN_CONTENT, scope, message)


def _placeholder(selector: str, text: str | None) -> Iterator[Finding]:
    if not text:
        return
    lowered, quote = text.lower(), _quote(text)
    filler = rules.FILLER_WORDS.intersection(_WORD.findall(lowered))
    if "lorem ipsum" in lowered or len(filler) > 1:
        message = f"The text {quote} is lorem ipsum."
        yield Finding(rules.PLACEHOLDER_FILLER, selector, message, text)
    if mark := next((mark for mark in rules.TEMPLATE_MARKS if mark in text), None):
        message = f"The text {quote} has an unfilled '{mark}'."
        yield Finding(rules.PLACEHOLDER_TEMPLATE, selector, message, text)
    if todo := _TODO.search(text):
        message = f"The text {quote} has a {todo[0]} in it."
        yield Finding(rules.PLACEHOLDER_TODO, selector, message, text)


def _at(
    block: Block, rule: Rule, message: str, before: str | None, after: str | None = None
) -> Finding:
    return Finding(rule, selector_of(block), message, before, after)


def _https(url: str) -> str:
    return "https" + url[len("http") :]


def _length(text: str) -> str:
    characters, width = f"{len(text)} characters", width_of(text)
    return characters if width == len(text) else f"{characters}, {width} columns wide"


def _label(kind: str, text: str | None) -> str:
    return f"The {kind} {_quote(text)}" if text else f"A nameless {kind}"


def _quote(text: str) -> str:
    return f"'{clipped(' '.join(text.split()), _MAX_QUOTE)}'"


#: The checks in their order, each with the name that a monitor shows.
STEPS: tuple[tuple[str, Callable[[ContentMap], Iterator[Finding]]], ...] = (
    ("head", _head),
    ("headings", _headings),
    ("images", _images),
    ("links", _links),
    ("text", _texts),
)
