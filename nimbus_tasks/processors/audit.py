"""The default processor: on-page checks of one page, from its content map alone.

It needs no network and no account, and gives the same findings for the same map. The rules, with
their confidence and why, are in :mod:`~nimbus_tasks.processors.audit_rules`, the checks in
:mod:`~nimbus_tasks.processors.audit_checks`. It proposes and never rewrites: a finding has an
``after`` only where that follows from the page itself. Left to others: what takes a request
(broken links, an image's real size), imagination (texts) or the whole site (a title used twice);
and one link text with several targets, since a map does not show what tells them apart.

What a map does not show is not checked: without ``head`` there are no findings on the head,
without ``blocks`` none on the content, and a value of the wrong type is passed over. A ``head``
that is there counts as read, so what it lacks the page lacks.

One finding is one thing to change: findings of the same rule and the same ``before`` are one, with
a ``count``. Twelve copies of an icon without a size come from one template line and are one
change; twelve different images need twelve sizes and are twelve. ``before`` is the faulty value, or
what an element is known by where it lacks one: an image's address, a link's text.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from nimbus_tasks.processors.audit_checks import STEPS, Finding
from nimbus_tasks.processors.audit_map import ContentMap, clipped

#: The most that a stored finding holds: selectors, and characters of the page's text.
_MAX_SELECTORS, _MAX_BEFORE = 10, 500


def audit(page: Mapping[str, Any], progress: Callable[..., None]) -> dict[str, Any]:
    """Check a stored page record and propose changes.

    ``progress(step, percent)`` is called as each step begins. Returns ``{"changes", "confidence",
    "optimization": {"processor": "audit", "findings": [{"rule", "selector", "message", "before",
    "after", "confidence", "count", "selectors"}]}}``: ``changes`` counts the findings,
    ``confidence`` (0..1) is their mean, None where there are none. No map makes it raise.
    """
    content = ContentMap.read(page.get("extraction"))
    found: list[Finding] = []
    for position, (step, check) in enumerate(STEPS):
        progress(step, 100 * position / len(STEPS))
        found.extend(check(content))
    findings = _grouped(found)
    confidences = [finding["confidence"] for finding in findings]
    return {
        "changes": len(findings),
        "confidence": round(sum(confidences) / len(findings), 3) if findings else None,
        "optimization": {"processor": "audit", "findings": findings},
    }


def _grouped(found: Iterable[Finding]) -> list[dict[str, Any]]:
    """The findings as they are stored, those of one rule and one ``before`` made one."""
    groups: dict[tuple[str, str | None], list[Finding]] = {}
    for finding in found:
        groups.setdefault((finding.rule.name, finding.before), []).append(finding)
    return [_stored(group) for group in groups.values()]


def _stored(group: Sequence[Finding]) -> dict[str, Any]:
    first, count = group[0], len(group)
    before = first.before
    if before is not None and first.after is None:  # where there is an after, it replaces the whole
        before = clipped(before, _MAX_BEFORE)
    return {
        "rule": first.rule.name,
        "selector": first.selector,
        "message": first.message if count == 1 else f"{first.message[:-1]} ({count} times).",
        "before": before,
        "after": first.after,
        "confidence": first.rule.confidence,
        "count": count,
        "selectors": [finding.selector for finding in group[:_MAX_SELECTORS]],
    }
