"""Session life: when a session ends, and when its use is to be noted (spec/identity.md §1.1).

The use of a session prolongs it, if the manifest has `auth.session.sliding`. A tenth of the
lifetime passes between two notes, so that a request writes hardly ever. The end never lies beyond
`auth.session.max_age` after the sign-in. A session without an end has no such bound.

Called by `issue`, `session_cache`, and the store's upkeep, which writes the notes.
"""

from __future__ import annotations

from typing import Final

import msgspec

from pylon.manifest.model import AuthConfig
from pylon.storage.records import SessionNote, SessionRow

ROTATION_GRACE_S: Final = 30  # how long a token counts after the rotation that has replaced it
_SHARE: Final = 10  # the part of the lifetime between two notes
_ENDLESS_NOTE_S: Final = 86_400  # between two notes of a session without an end


class SessionLife(msgspec.Struct, frozen=True):
    """The rules of one app. Times are Unix seconds."""

    expires_in_s: int  # 0: never
    max_age_s: int  # 0: no bound
    is_sliding: bool

    @property
    def note_s(self) -> int:
        """Return how long after a noted use the next one is noted."""
        return max(1, self.expires_in_s // _SHARE) if self.expires_in_s else _ENDLESS_NOTE_S

    def end_s(self, created_at_s: int, now_s: int) -> int:
        """Return the end of a session that is made or prolonged now; 0: never."""
        if not self.expires_in_s:
            return 0
        end_s = now_s + self.expires_in_s
        return min(end_s, created_at_s + self.max_age_s) if self.max_age_s else end_s

    def needs_note(self, session: SessionRow, now_s: int) -> bool:
        """Return whether the use of the session now is to be written."""
        return not session.rotated_at_s and now_s - session.last_seen_at_s >= self.note_s

    def can_prolong(self, session: SessionRow, now_s: int) -> bool:
        """Return whether a note now moves the end of the session."""
        if not self.is_sliding or not session.expires_at_s:
            return False
        return self.end_s(session.created_at_s, now_s) > session.expires_at_s

    def note(self, now_s: int) -> SessionNote:
        """Return what the store is to write of sessions that were used now."""
        prolong_to_s = now_s + self.expires_in_s if self.is_sliding and self.expires_in_s else 0
        return SessionNote(now_s, now_s - self.note_s, prolong_to_s, self.max_age_s)


def session_life(auth: AuthConfig) -> SessionLife:
    """Return the rules that a manifest sets."""
    return SessionLife(
        auth.session_expires_in_s, auth.session_max_age_s, auth.is_session_sliding
    )


def has_ended(session: SessionRow, now_s: float) -> bool:
    """Return whether a session has expired."""
    return bool(session.expires_at_s) and session.expires_at_s <= now_s


def is_over(session: SessionRow, now_s: float) -> bool:
    """Return whether a session has expired, or its token was replaced longer ago than the grace."""
    if has_ended(session, now_s):
        return True
    return bool(session.rotated_at_s) and session.rotated_at_s + ROTATION_GRACE_S <= now_s
