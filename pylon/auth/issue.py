"""Issue: makes the sessions of sign-ins and of rotations. No other module makes sessions.

Each sign-in begins a family: the session of its token, and those of the tokens that later replace
this one (spec/identity.md §1.1). A rotation keeps the time and methods of the sign-in, the tenant
and the device. It prolongs the session, but never beyond `auth.session.max_age` after the sign-in.

Invariant: the token of a `NewSession` leaves the process only after its `put` is committed. A
`put` is a step of the same transaction as the use of the credentials that allow it.

Called by the resources of sessions and by the flows of the identity workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from pylon.app import App
from pylon.auth.session_life import SessionLife, session_life
from pylon.auth.tokens import new_session_token, session_id_of, token_hint
from pylon.clock import NS_PER_S, Clock, RandomSource
from pylon.storage.ops import PutSession
from pylon.storage.records import SessionRow


@dataclass(frozen=True, slots=True)
class NewSession:
    """A session to store, and its token, which only its owner receives."""

    token: str = field(repr=False)
    put: PutSession


@dataclass(frozen=True, slots=True)
class SessionIssuer:
    """Makes the sessions of one app."""

    life: SessionLife
    clock: Clock
    random: RandomSource

    def issue(
        self,
        user_id: str,
        *,
        device: str,
        methods: Sequence[str] = (),
        is_guest: bool = False,
        tenant_id: str | None = None,
    ) -> NewSession:
        """Return the session of a new sign-in.

        Args:
            device: the label of the client (`pylon.auth.devices`).
            methods: how the user has proved who they are, for example ``password``, ``totp``.
        """
        token = new_session_token(self.random)
        now_s = self.clock.wall_ns() // NS_PER_S
        session_id = session_id_of(token)
        return NewSession(token, PutSession(
            session_id=session_id,
            user_id=user_id,
            is_guest=is_guest,
            created_at_s=now_s,
            expires_at_s=self.life.end_s(now_s, now_s),
            device=device,
            tenant_id=tenant_id,
            family=session_id,
            auth_time_s=now_s,
            methods=" ".join(methods),
            token_hint=token_hint(token),
        ))

    def rotate(self, old: SessionRow) -> NewSession:
        """Return a session of the family of `old`, with a new token."""
        token = new_session_token(self.random)
        now_s = self.clock.wall_ns() // NS_PER_S
        return NewSession(token, PutSession(
            session_id=session_id_of(token),
            user_id=old.user_id,
            is_guest=old.is_guest,
            created_at_s=old.created_at_s,
            expires_at_s=self.life.end_s(old.created_at_s, now_s),
            device=old.device,
            tenant_id=old.tenant_id,
            family=old.family,
            auth_time_s=old.auth_time_s,
            methods=old.methods,
            token_hint=token_hint(token),
            last_seen_at_s=now_s,
        ))


def session_issuer(app: App) -> SessionIssuer:
    """Return the issuer of an app."""
    return SessionIssuer(session_life(app.manifest.auth), app.clock, app.random)
