"""Commit: carries the steps of a flow out, then tells the other processes what has ended.

Called by the flows that end sessions.
"""

from __future__ import annotations

from collections.abc import Sequence

from pylon.auth.revocation import announced, ended_families
from pylon.auth.transactions import Step, carry_out
from pylon.bus.messages import SessionRevoked
from workers.identity.identity import Identity


def commit(identity: Identity, steps: Sequence[Step]) -> list[str]:
    """Carry all of the steps out, or none. Return the families of sessions that have ended.

    Raises:
        PylonError: of the step that was refused.
    """
    families = ended_families(carry_out(identity.writer.submit, steps))
    for family in announced(families):
        identity.send_signal(SessionRevoked(family))
    return families
