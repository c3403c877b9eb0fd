"""How long a claim holds that is not renewed."""

from __future__ import annotations

from nimbus_tasks.core.clock import LONGEST_LEASE_SECONDS, iso_after, parse_iso

#: A claim of a writer that knows no leases counts as given up when it was not updated for so long.
LEASELESS_SECONDS = 600.0
#: Clocks of machines that work on one project may differ by so much.
CLOCK_SKEW_SECONDS = 300.0


def has_lapsed(lease: str | None, updated: str | None, now: str) -> bool:
    """Whether a claim is over at the moment ``now``: its lease was not renewed in time.

    All three are as the records write times. The seed's writers give no lease, only ``updated``. An
    ``updated`` of the future was written before a clock was set back, and is no sign of life.
    """
    last_sign, moment = parse_iso(updated), parse_iso(now)
    if last_sign is None or moment is None:
        return lease is None or lease < now
    if (last_sign - moment).total_seconds() > CLOCK_SKEW_SECONDS:
        return True
    longest = LONGEST_LEASE_SECONDS + CLOCK_SKEW_SECONDS
    if lease is None or lease > iso_after(longest, start=last_sign):
        lease = iso_after(LEASELESS_SECONDS, start=last_sign)
    return lease < now
