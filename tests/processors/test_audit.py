"""What the audit finds on a page, rule by rule, and what it leaves alone."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nimbus_tasks.processors import audit_rules
from nimbus_tasks.processors.audit import audit

TITLE = "Watch repairs by post in the whole UK"
DESCRIPTION = "We mend watches of every make, insured both ways, with a guarantee of two years."
CANONICAL = "https://www.example.com/repairs/watches"
LONG = "Every watch is opened, cleaned, oiled and tested for a week before it is sent back to you."
WORDS = " ".join(f"word{number}" for number in range(200))


def a_map(*blocks: Any, **fields: Any) -> dict[str, Any]:
    """A map without a fault, with these blocks and fields of the head or the map besides."""
    head = {
        "title": TITLE,
        "metaDescription": DESCRIPTION,
        "canonical": CANONICAL,
        "ogImage": "https://www.example.com/watch.jpg",
    }
    head.update({name: fields.pop(name) for name in list(fields) if name in head})
    text = [a_block("h1", text="Watch repairs"), a_block("p", text=WORDS)]
    return {"route": "/repairs/watches", "head": head, "blocks": [*text, *blocks], **fields}


def a_block(kind: str, at: str | None = None, **fields: Any) -> dict[str, Any]:
    """A block; ``at`` is its selector below main."""
    return {"type": kind, "selector": f"main > {at or kind}", **fields}


def an_image(at: str = "img", **fields: Any) -> dict[str, Any]:
    good = {"src": "/watch.jpg", "alt": "A watch", "width": "120", "height": "80"}
    return a_block("img", at, **{**good, **fields})


def a_link(at: str = "a", **fields: Any) -> dict[str, Any]:
    return a_block("a", at, **{"anchor": "Watch straps", "href": "/straps", **fields})


def audited(extraction: Any) -> dict[str, Any]:
    return audit({"page_id": "page_1", "extraction": extraction}, lambda *_: None)


def findings(extraction: Any) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = audited(extraction)["optimization"]["findings"]
    return found


def rules_of(extraction: Any) -> list[str]:
    return [finding["rule"] for finding in findings(extraction)]


def the_one(rule: str, extraction: Any) -> dict[str, Any]:
    (finding,) = [finding for finding in findings(extraction) if finding["rule"] == rule]
    return finding


def h(level: int, text: str = "Prices") -> dict[str, Any]:
    return a_block(f"h{level}", f"h{level}:{text}", text=text)


FAULTS = [
    # -- title
    ("title-missing", a_map(title="")),
    ("title-missing", a_map(title=None)),
    ("title-missing", a_map(title=" \n ")),
    ("title-missing", {"head": {}}),
    ("title-too-short", a_map(title="x" * 29)),
    ("title-slightly-long", a_map(title="x" * 61)),
    ("title-slightly-long", a_map(title="x" * 65)),
    ("title-too-long", a_map(title="x" * 66)),
    ("title-too-long", a_map(title="時計" * 17)),
    ("title-white-space", a_map(title=f" {TITLE}")),
    ("title-white-space", a_map(title="Watch repairs\nby post in the whole UK")),
    ("title-white-space", a_map(title="Watch  repairs by post in the whole UK")),
    # -- meta description
    ("meta-description-missing", a_map(metaDescription="")),
    ("meta-description-missing", {"head": {"title": TITLE}}),
    ("meta-description-too-short", a_map(metaDescription="x" * 69)),
    ("meta-description-too-long", a_map(metaDescription="x" * 161)),
    ("meta-description-equals-title", a_map(metaDescription=f"  {TITLE.upper()} ")),
    # -- canonical and og:image
    ("canonical-missing", a_map(canonical="")),
    ("canonical-not-absolute", a_map(canonical="/repairs/watches")),
    ("canonical-not-absolute", a_map(canonical="//www.example.com/repairs/watches")),
    ("canonical-not-absolute", a_map(canonical="https://[broken/repairs")),
    ("canonical-not-absolute", a_map(canonical="x", url="https://[broken/")),
    ("canonical-not-https", a_map(canonical="http://www.example.com/repairs/watches")),
    ("canonical-other-page", a_map(canonical="https://www.example.com/")),
    ("canonical-other-page", a_map(canonical="https://www.example.com/repairs/clocks")),
    ("canonical-other-page", a_map(route="", url="https://www.example.com/a")),
    ("canonical-other-page", a_map(route="", url="/a")),
    ("canonical-other-folder", a_map(route="/repair/watches.html")),
    ("canonical-other-folder", a_map(route="/")),
    ("og-image-missing", a_map(ogImage="")),
    # -- headings
    ("h1-missing", {"blocks": []}),
    ("h1-missing", {"blocks": [h(2)]}),
    ("h1-empty", {"blocks": [a_block("h1", text=" ")]}),
    ("h1-empty", {"blocks": [a_block("h1", text=""), an_image("h1 > img", alt="")]}),
    ("h1-multiple", a_map(h(1, "Clocks"))),
    ("heading-level-skipped", a_map(h(2), h(4))),
    ("heading-level-skipped", a_map(h(3))),
    # -- images
    ("image-src-missing", a_map(an_image(src=""))),
    ("image-src-missing", a_map(an_image(src=None))),
    ("image-alt-missing", a_map(an_image(alt=None))),
    ("image-alt-missing", a_map(a_block("img", src="/a.png", width=1, height=1))),
    ("image-alt-empty", a_map(an_image(alt=""))),
    ("image-alt-empty", a_map(an_image(alt="  "))),
    ("image-alt-file-name", a_map(an_image(alt="DSC_0042.JPG"))),
    ("image-alt-file-name", a_map(an_image(src="/img/hero-2.webp?w=9", alt="hero-2"))),
    ("image-without-size", a_map(an_image(width=None))),
    ("image-without-size", a_map(an_image(height=""))),
    ("image-without-size", a_map(an_image(height="auto"))),
    # -- links
    ("link-without-href", a_map(a_link(href=""))),
    ("link-without-href", a_map(a_block("a", anchor="Clocks"))),
    ("link-href-placeholder", a_map(a_link(href="#"))),
    ("link-javascript", a_map(a_link(href="JavaScript:void(0)"))),
    ("link-without-text", a_map(a_link(anchor=""))),
    ("link-image-without-alt", a_map(a_link(anchor=""), an_image("a > img", alt=""))),
    ("link-generic-text", a_map(a_link(anchor="Click here"))),
    ("link-generic-text", a_map(a_link(anchor=" Read  more… "))),
    ("link-insecure", a_map(a_link(href="http://www.example.com/straps"))),
    ("link-insecure", a_map(a_link(href="http://example.com/straps"))),
    # -- text
    ("placeholder-lorem-ipsum", a_map(a_block("p", "p:2", text="Lorem ipsum dolor sit amet."))),
    ("placeholder-lorem-ipsum", a_map(a_block("li", text="Reiciendis praesentium alias quos."))),
    ("placeholder-template", a_map(a_block("p", "p:2", text="Dear {{ customer.name }},"))),
    ("placeholder-template", a_map(title="Watch repairs in ${city}, by post and insured")),
    ("placeholder-template", a_map(metaDescription=f"{DESCRIPTION} {{% price %}}")),
    ("placeholder-template", a_map(an_image(alt="{{ brand }} watch"))),
    ("placeholder-template", a_map(a_link(anchor="{{ label }}"))),
    ("placeholder-todo", a_map(a_block("p", "p:2", text="TODO: write about prices"))),
    ("duplicate-text", a_map(a_block("p", "p:2", text=LONG), a_block("li", text=f" {LONG}"))),
    ("duplicate-text", a_map(a_block("li", "a", text="x" * 80), a_block("li", text="X" * 80))),
    ("thin-content", {"blocks": [a_block("p", text="word " * 199)]}),
    ("thin-content", {"blocks": []}),
]

NO_FAULTS = [
    ("title-too-short", a_map(title="x" * 30)),
    ("title-too-short", a_map(title="腕時計修理専門店、郵送で全国対応")),  # 16 wide ones
    ("title-slightly-long", a_map(title="x" * 60)),
    ("title-slightly-long", a_map(title="x" * 66)),  # too long, and not both
    ("title-too-long", a_map(title="x" * 65)),
    ("title-white-space", a_map(title="Combien ça coûte\u00a0? Réparer une montre")),
    ("title-missing", a_map(title=2024)),  # of the wrong type: unreadable, not missing
    ("meta-description-too-short", a_map(metaDescription="x" * 70)),
    ("meta-description-too-long", a_map(metaDescription="x" * 160)),
    ("meta-description-equals-title", a_map(title="", metaDescription="")),
    ("canonical-other-page", a_map(canonical=f"{CANONICAL}/")),
    ("canonical-other-page", a_map(canonical=f"{CANONICAL}.html?page=2")),
    ("canonical-other-page", a_map(route="/index", canonical="https://www.example.com")),
    ("canonical-other-page", a_map(route="/a/index.html", canonical="https://example.com/a/")),
    ("canonical-other-page", a_map(route="/caf%C3%A9", canonical="https://example.com/Café")),
    ("canonical-other-page", a_map(route="/blog/[slug]")),  # a pattern is no path
    ("canonical-other-page", a_map(route="", path="dist/clocks.html")),  # its root is unknown
    ("canonical-other-page", a_map(route="/repair/watches")),  # another folder: a rule of its own
    ("og-image-missing", a_map(ogImage=["a.png", "b.png"])),
    ("meta-description-missing", a_map(metaDescription=["a"])),
    ("canonical-missing", a_map(canonical=7)),
    ("link-without-href", a_map(a_link(href=["/a"]))),
    ("h1-missing", {"blocks": "none"}),
    ("h1-missing", {"blocks": [None, 7, {"type": 7}]}),  # nothing readable proves nothing
    ("h1-empty", {"blocks": [a_block("h1", text=""), an_image("h1 > img", alt="Logo")]}),
    ("h1-multiple", a_map(h(1, ""))),  # an empty one is its own fault
    ("heading-level-skipped", a_map(h(2), h(3), h(4), h(2))),
    ("heading-level-skipped", {"blocks": [h(3)]}),  # what is above may lie outside main
    ("image-alt-empty", a_map(a_link(), an_image("a > img", alt=""))),  # the link has its text
    ("image-alt-empty", a_map(a_link(anchor=""), an_image("a > img", alt=""))),  # the link's fault
    ("image-alt-file-name", a_map(an_image(src="/Rolex.png", alt="Rolex"))),
    ("image-alt-file-name", a_map(an_image(alt="Watch service - example.com"))),
    ("image-without-size", a_map(an_image(width=120, height="80px"))),
    ("link-without-text", a_map(a_link(anchor=""), an_image("a > img"))),
    ("link-without-text", a_map(a_link(anchor="", href=""))),  # a jump mark of old
    ("link-image-without-alt", a_map(a_link(anchor=""), an_image("a > img", alt=None))),
    ("link-href-placeholder", a_map(a_link(href="#", anchor="Back to top"))),
    ("link-href-placeholder", a_map(a_link(href="#prices"))),
    ("link-generic-text", a_map(a_link(anchor="Read more FAQs"))),
    ("link-insecure", a_map(a_link(href="http://other.example.org/"))),
    ("link-insecure", {"blocks": [a_link(href="http://example.com/")]}),  # whose host is unknown
    ("placeholder-lorem-ipsum", a_map(a_block("p", "p:2", text="Consectetur is one word."))),
    ("placeholder-template", a_map(a_block("p", "p:2", text="From $29 {postage included}"))),
    ("placeholder-todo", a_map(a_block("p", "p:2", text="Our to-do list, todo bien"))),
    ("duplicate-text", a_map(a_block("li", "li:1", text="Open"), a_block("li", text="Open"))),
    ("duplicate-text", a_map(a_block("li", text=LONG), a_block("p", "li > p", text=LONG))),
    ("duplicate-text", a_map(a_block("li", "a", text="x" * 79), a_block("li", text="x" * 79))),
    ("duplicate-text", a_map(h(2, LONG), h(2, LONG))),
    ("thin-content", {"blocks": [a_block("p", text="word " * 200)]}),
    ("thin-content", {"blocks": [a_block("p", text="時計の修理は郵送で承ります。")]}),
    ("thin-content", {"head": {}}),
]


def named(table: list[tuple[str, Any]]) -> list[Any]:
    return [pytest.param(*row, id=f"{number:02}-{row[0]}") for number, row in enumerate(table)]


@pytest.mark.parametrize(("rule", "extraction"), named(FAULTS))
def test_a_fault_is_found(rule: str, extraction: Any) -> None:
    assert rule in rules_of(extraction)


@pytest.mark.parametrize(("rule", "extraction"), named(NO_FAULTS))
def test_what_is_no_fault_is_left_alone(rule: str, extraction: Any) -> None:
    assert rule not in rules_of(extraction)


def declared_rules() -> list[audit_rules.Rule]:
    return [rule for rule in vars(audit_rules).values() if isinstance(rule, audit_rules.Rule)]


def test_every_rule_is_in_the_table_of_faults() -> None:
    assert {rule for rule, _ in FAULTS} == {rule.name for rule in declared_rules()}


def test_every_rule_says_how_sure_it_is_and_why() -> None:
    declared = declared_rules()
    assert len({rule.name for rule in declared}) == len(declared)
    assert all(0 < rule.confidence <= 1 and rule.why for rule in declared)


@pytest.mark.parametrize(
    "blocks",
    [
        [a_link(href="tel:08001216030", anchor="0800 121 6030")],
        [a_link(href="mailto:a@example.com", anchor="Write to us")],
        [a_link(href="https://other.example.org/", anchor="Our sister shop")],
        [h(2), h(3), h(2), an_image()],
        [a_link(anchor="Clocks", href="/a"), a_link("a:2", anchor="Clocks", href="/b")],
    ],
)
def test_a_page_without_a_fault_has_no_changes_and_no_confidence(blocks: list[Any]) -> None:
    assert audited(a_map(*blocks)) == {
        "changes": 0,
        "confidence": None,
        "optimization": {"processor": "audit", "findings": []},
    }


@pytest.mark.parametrize("extraction", [None, [], "text", 3, {}, {"head": "none", "blocks": {}}])
def test_a_map_without_head_and_blocks_has_nothing_to_check(extraction: Any) -> None:
    assert audited(extraction)["changes"] == 0


def test_a_record_without_extraction_has_nothing_to_check() -> None:
    assert audit({"page_id": "page_1"}, lambda *_: None)["changes"] == 0


def test_a_head_is_checked_without_blocks_and_blocks_without_a_head() -> None:
    assert rules_of({"head": {"title": TITLE}, "blocks": None}) == [
        "meta-description-missing", "canonical-missing", "og-image-missing",
    ]  # fmt: skip
    assert rules_of({"blocks": [h(2)]}) == ["h1-missing", "thin-content"]


# -- what a finding says ----------------------------------------------------------------------


def test_a_finding_in_full() -> None:
    assert findings(a_map(title="Watch  repairs by post in the whole UK ")) == [
        {
            "rule": "title-white-space",
            "selector": "head > title",
            "message": "The title's 39 characters have stray white space among them.",
            "before": "Watch  repairs by post in the whole UK ",
            "after": TITLE,
            "confidence": 0.95,
            "count": 1,
            "selectors": ["head > title"],
        }
    ]


@pytest.mark.parametrize(
    ("rule", "extraction", "message"),
    [
        ("title-too-long", a_map(title="x" * 72), "The title has 72 characters, more than 60."),
        (
            "canonical-other-folder",
            a_map(route="/repair/watches"),
            "The canonical path is '/repairs/watches', the page's '/repair/watches'.",
        ),
        ("h1-multiple", a_map(h(1, "B")), "The page has 2 h1 headings with text, not one."),
        (
            "heading-level-skipped",
            a_map(h(2), h(4)),
            "The h4 'Prices' follows an h2 and skips 1 level.",
        ),
        (
            "title-too-long",
            a_map(title="時計" * 17),
            "The title has 34 characters, 68 columns wide, more than 60.",
        ),
        ("heading-level-skipped", a_map(h(5)), "The h5 'Prices' follows an h1 and skips 3 levels."),
        (
            "image-without-size",
            a_map(an_image(width=None, height=None)),
            "The image '/watch.jpg' has no width and no height.",
        ),
        ("image-without-size", a_map(an_image(width=None)), "The image '/watch.jpg' has no width."),
        ("link-without-href", a_map(a_link(href="")), "The link 'Watch straps' has no href."),
        (
            "thin-content",
            {"blocks": [a_block("p", text="three short words")]},
            "The page has 3 words of text, fewer than 200.",
        ),
    ],
)  # fmt: skip
def test_a_message_names_what_was_measured(rule: str, extraction: Any, message: str) -> None:
    assert the_one(rule, extraction)["message"] == message


@pytest.mark.parametrize(
    ("rule", "extraction", "after"),
    [
        ("canonical-not-https", a_map(canonical="http://a.com/repairs/watches"),
         "https://a.com/repairs/watches"),
        ("canonical-not-absolute", a_map(canonical="/w", url="https://a.com/repairs/watches"),
         "https://a.com/w"),
        ("canonical-not-absolute", a_map(canonical="/w"), None),
        ("link-insecure", a_map(a_link(href="http://example.com/a?b=c#d")),
         "https://example.com/a?b=c#d"),
        ("title-too-long", a_map(title="x" * 72), None),
        ("image-alt-missing", a_map(an_image(alt=None)), None),
    ],
)  # fmt: skip
def test_after_is_there_only_where_it_follows(rule: str, extraction: Any, after: Any) -> None:
    assert the_one(rule, extraction)["after"] == after


def test_a_list_within_a_paragraph_is_counted_once() -> None:
    item = "word " * 100
    nested = [a_block("p", text=item), a_block("li", "p > ul > li", text=item)]
    message = the_one("thin-content", {"blocks": nested})["message"]
    assert message == "The page has 100 words of text, fewer than 200."


def test_a_link_round_a_card_does_not_hide_its_texts() -> None:
    card = [a_link(anchor="Straps"), a_block("p", "a > p", text="word " * 200)]
    assert "thin-content" not in rules_of({"blocks": card})


# -- what is one change -----------------------------------------------------------------------


def test_copies_of_one_image_are_one_change() -> None:
    icons = [an_image(f"img:{number}", src="/icon.png", width=None) for number in range(40)]
    (finding,) = findings(a_map(*icons))
    assert finding["count"] == 40
    assert finding["message"] == "The image '/icon.png' has no width (40 times)."
    assert finding["selector"] == "main > img:0"
    assert finding["selectors"] == [f"main > img:{number}" for number in range(10)]


def test_different_images_are_changes_of_their_own() -> None:
    pictures = [an_image(src=f"/{number}.png", width=None) for number in range(40)]
    assert audited(a_map(*pictures))["changes"] == 40


def test_images_without_src_are_told_apart_by_their_alt() -> None:
    pictures = [an_image(src="", alt=alt, width=None) for alt in ("Rolex", "Omega")]
    assert rules_of(a_map(*pictures)) == [
        "image-src-missing", "image-without-size", "image-without-size",
    ]  # fmt: skip


def test_a_pages_confidence_is_the_mean_of_its_findings() -> None:
    extraction = a_map(ogImage="", title="x" * 61, canonical="")
    assert [finding["confidence"] for finding in findings(extraction)] == [0.5, 0.7, 0.7]
    assert audited(extraction)["confidence"] == 0.633


def test_long_texts_are_cut_short_unless_they_are_to_be_replaced() -> None:
    long = "x" * 5_000
    assert len(the_one("title-too-long", a_map(title=long))["before"]) == 500
    assert the_one("title-white-space", a_map(title=f" {long}"))["after"] == long
    assert all(len(finding["message"]) < 200 for finding in findings(a_map(title=long)))


# -- how it behaves ---------------------------------------------------------------------------


def test_progress_is_told_as_each_step_begins() -> None:
    told: list[tuple[str, float]] = []
    audit({"extraction": a_map()}, lambda step, percent: told.append((step, percent)))
    assert told == [("head", 0), ("headings", 20), ("images", 40), ("links", 60), ("text", 80)]


def test_the_page_is_left_as_it_is() -> None:
    extraction = a_map(a_link(href="#"), title=" x ")
    before = json.dumps(extraction)
    audited(extraction)
    assert json.dumps(extraction) == before


scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
anything = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=12,
)
values = anything | st.sampled_from(
    [
        "",
        "#",
        "http://[",
        "//",
        "http://www.example.com/a",
        "TODO {{ x }}",
        "hero_1.png",
        "main > a",
    ]
)
kinds = st.sampled_from(["a", "img", "h1", "h2", "h4", "p", "li"]) | values
block_like = st.fixed_dictionaries(
    {"type": kinds},
    optional=dict.fromkeys(
        ("selector", "text", "anchor", "href", "src", "alt", "width", "height"), values
    ),
)
head_like = st.fixed_dictionaries(
    {}, optional=dict.fromkeys(("title", "metaDescription", "canonical", "ogImage"), values)
)
map_like = st.fixed_dictionaries(
    {},
    optional={
        "head": head_like | anything,
        "blocks": st.lists(block_like | anything, max_size=8) | anything,
        "route": values,
        "url": values,
        "main_selector": values,
    },
)


@settings(max_examples=300, deadline=None)
@given(anything | map_like)
def test_no_map_makes_it_fail_and_the_same_map_gives_the_same(extraction: Any) -> None:
    result = audited(extraction)
    found = result["optimization"]["findings"]
    assert json.loads(json.dumps(result, allow_nan=False)) == result
    assert result["changes"] == len(found)
    assert (result["confidence"] is None) == (not found)
    assert result["confidence"] is None or 0 <= result["confidence"] <= 1
    assert all(isinstance(finding["selector"], str) for finding in found)
    assert all(finding["message"].endswith(".") for finding in found)
    assert audited(extraction) == result
