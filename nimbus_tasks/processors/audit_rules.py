"""What the audit asks of a page: its rules, their thresholds and word lists. No logic is here.

A rule's ``confidence`` says how sure it is that acting on a finding betters the page, judged from
a content map alone: 1 where the map proves the fault, less where the map cannot see everything
(scripts, aria attributes, what lies outside ``main``) or where the field itself disagrees.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One thing that is checked: its kebab-case name, its confidence (0..1) and the reason."""

    name: str
    confidence: float
    why: str


# Lengths are columns: a wide (East Asian) character counts as two, as it does on a results page.
# Bounds in common use among SEO tools; search pages cut titles by pixels, not by characters.
TITLE_MIN, TITLE_MAX, TITLE_LIMIT = 30, 60, 65
# Bounds in common use; search pages show about this much.
DESCRIPTION_MIN, DESCRIPTION_MAX = 70, 160
# A rule of thumb: pages of fewer words seldom answer a question.
THIN_WORDS = 200
# Shorter texts (prices, labels, opening hours) repeat for good reason.
DUPLICATE_MIN = 80

# Lighthouse's English list for its link-text audit, with five more of the kind.
GENERIC_ANCHORS = frozenset({
    "click here", "click this", "go", "here", "information", "learn more", "more", "more info",
    "more information", "right here", "read more", "see more", "start", "this",
    "link", "this link", "this page", "view more", "find out more",
})  # fmt: skip
# Words of the lorem ipsum generators that no living language shares; two of them tell.
FILLER_WORDS = frozenset({
    "adipisicing", "adipiscing", "architecto", "asperiores", "blanditiis", "consectetur",
    "cupiditate", "dignissimos", "doloremque", "exercitationem", "incididunt", "laboriosam",
    "laudantium", "molestias", "necessitatibus", "pariatur", "perspiciatis", "praesentium",
    "quibusdam", "quisquam", "reiciendis", "repellat", "reprehenderit", "similique",
    "voluptatem", "voluptates", "voluptatum",
})  # fmt: skip
TEMPLATE_MARKS = ("{{", "{%", "${")

TITLE_MISSING = Rule("title-missing", 1.0, "HTML demands a title; results pages lead with it")
TITLE_TOO_SHORT = Rule("title-too-short", 0.6, "a contact or legal page can do with a short one")
TITLE_SLIGHTLY_LONG = Rule(
    "title-slightly-long", 0.5, "search engines cut by pixel width: 61 to 65 may still fit"
)
TITLE_TOO_LONG = Rule("title-too-long", 0.8, "cut on nearly every results page, seldom harmful")
TITLE_WHITE_SPACE = Rule(
    "title-white-space", 0.95, "browsers collapse it: the change is safe, its effect small"
)
DESCRIPTION_MISSING = Rule("meta-description-missing", 0.9, "the snippet is then left to chance")
DESCRIPTION_TOO_SHORT = Rule(
    "meta-description-too-short", 0.6, "short can be enough; search engines often write their own"
)
DESCRIPTION_TOO_LONG = Rule(
    "meta-description-too-long", 0.7, "cut when shown; search engines often write their own"
)
DESCRIPTION_IS_TITLE = Rule(
    "meta-description-equals-title", 0.95, "it repeats the line that is shown above it"
)
CANONICAL_MISSING = Rule("canonical-missing", 0.7, "a page without twins can do without")
CANONICAL_NOT_ABSOLUTE = Rule(
    "canonical-not-absolute", 0.8, "relative ones are supported; absolute ones cannot be misread"
)
CANONICAL_NOT_HTTPS = Rule(
    "canonical-not-https", 0.9, "right unless the site has no https, which the map cannot tell"
)
CANONICAL_OTHER_PAGE = Rule(
    "canonical-other-page", 0.8, "takes the page out of search, unless that is what is meant"
)
CANONICAL_OTHER_FOLDER = Rule(
    "canonical-other-folder", 0.4, "the same page name elsewhere: often how the site is deployed"
)
OG_IMAGE_MISSING = Rule("og-image-missing", 0.7, "Open Graph demands it; matters only when shared")
H1_MISSING = Rule("h1-missing", 0.8, "the map covers the main element, an h1 may stand outside")
H1_EMPTY = Rule("h1-empty", 0.9, "a heading that says nothing; a script may fill it")
H1_MULTIPLE = Rule("h1-multiple", 0.6, "HTML allows it; outlines get unclear")
HEADING_SKIPPED = Rule(
    "heading-level-skipped", 0.7, "confuses those who navigate by headings; no failure in WCAG"
)
IMAGE_ALT_MISSING = Rule("image-alt-missing", 1.0, "WCAG 1.1.1: the address is read out instead")
IMAGE_ALT_EMPTY = Rule(
    "image-alt-empty", 0.5, "right for decoration, and scanners write it for a missing alt as well"
)
IMAGE_ALT_FILE_NAME = Rule("image-alt-file-name", 0.95, "WCAG failure F30: it describes nothing")
IMAGE_WITHOUT_SIZE = Rule(
    "image-without-size", 0.7, "layout shift, unless a style sheet reserves the space"
)
IMAGE_SRC_MISSING = Rule(
    "image-src-missing", 0.3, "lazily loaded images keep theirs in data-src, which no map shows"
)
LINK_IMAGE_NO_ALT = Rule(
    "link-image-without-alt", 0.9, "the image is all the link has; it may have an aria-label"
)
LINK_NO_TEXT = Rule(
    "link-without-text", 0.5, "it may hold an icon, a background image or an aria-label"
)
LINK_NO_HREF = Rule("link-without-href", 0.9, "leads nowhere, takes no focus; a script may use it")
LINK_HREF_PLACEHOLDER = Rule(
    "link-href-placeholder", 0.6, "'#' leads to the top of the page; scripts may use it"
)
LINK_JAVASCRIPT = Rule("link-javascript", 0.9, "dead without scripts, and not followed in search")
LINK_GENERIC_TEXT = Rule("link-generic-text", 0.7, "Lighthouse link-text: it says nothing alone")
LINK_INSECURE = Rule(
    "link-insecure", 0.9, "right unless the site has no https, which the map cannot tell"
)
PLACEHOLDER_FILLER = Rule("placeholder-lorem-ipsum", 0.95, "filler text; only typographers mean it")
PLACEHOLDER_TEMPLATE = Rule(
    "placeholder-template", 0.8, "an unfilled variable, unless the page explains templates"
)
PLACEHOLDER_TODO = Rule("placeholder-todo", 0.5, "a note to oneself, or Spanish for 'all'")
DUPLICATE_TEXT = Rule("duplicate-text", 0.6, "one copy may be for small screens only")
THIN_CONTENT = Rule("thin-content", 0.4, "length is no quality; tables and forms are in no map")
