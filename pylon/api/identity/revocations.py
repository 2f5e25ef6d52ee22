"""Revocations of an HTTP worker: ends sessions in the store, then announces it.

Called by the resources of sessions.
"""

from __future__ import annotations

from collections.abc import Sequence

from pylon.api.services import IdentityServices
from pylon.auth.revocation import announced, ended_families
from pylon.auth.transactions import Step, carry_out
from pylon.bus.messages import SessionRevoked


class Revocations:
    """Carries steps out, some of which end sessions."""

    def __init__(self, services: IdentityServices) -> None:
        self._services = services

    def carry_out(self, steps: Sequence[Step]) -> list[str]:
        """Carry all of the steps out, or none. Return the families that have ended.

        Raises:
            PylonError: of the step that was refused.
        """
        families = ended_families(carry_out(self._services.writer.submit, steps))
        self.announce(families)
        return families

    def announce(self, families: Sequence[str]) -> None:
        """Signal to all processes that these families have ended."""
        self._services.requests.session_cache.forget()
        for family in announced(families):
            self._services.send_signal(SessionRevoked(family))
