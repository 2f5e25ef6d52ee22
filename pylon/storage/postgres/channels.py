"""Channels: the names and payloads of NOTIFY, by which the nodes of a server wake each other.

A name depends on the schema, so that two apps in one database do not hear each other. Every
transaction that commits changes, document updates or ends of sessions notifies `CHANGES`.

PostgreSQL merges equal payloads of one transaction, and a notification may be lost with its
connection. So nothing is counted by notifications: they tell a node to look.

Called by the writer, `relay` and `news`.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from pylon.storage.postgres.statements import Session

CHANGES: Final = "pylon_changes"
NEWS: Final = "pylon_news"

_DOCUMENTS: Final = "d"
_SESSIONS: Final = "s"


class ChangesSignal(NamedTuple):
    """A payload of `CHANGES`."""

    head: int  # the newest seq of the commit; 0: it changed no row
    writer: str  # which has committed
    has_documents: bool  # documents have changed without an event of their rows
    has_sessions: bool  # `_pylon_marks` has new lines


def channel_name(session: Session, channel: str) -> str:
    """Return the name of a channel in the schema of this connection. One round trip.

    Raises:
        psycopg.Error
    """
    result = session.execute(
        "SELECT $1 || '_' || oid FROM pg_namespace WHERE nspname = current_schema()", (channel,)
    )
    return (result.get_value(0, 0) or b"").decode()


def payload(head: int, writer: str, *, documents: bool = False, sessions: bool = False) -> str:
    """Return the payload of a commit.

    Args:
        head: the newest seq of the commit; 0: it changed no row.
        writer: a random name of the writer, without a colon. Its own node takes the changes from
            it, and does not read them.
    """
    return f"{head}:{writer}:{_DOCUMENTS if documents else ''}{_SESSIONS if sessions else ''}"


def read_payload(text: bytes) -> ChangesSignal:
    """Return the content of a payload. One that a later version has sent counts as everything."""
    parts = text.decode("utf-8", "replace").split(":")
    if len(parts) != 3 or not parts[0].isdecimal():
        return ChangesSignal(0, "", True, True)
    return ChangesSignal(int(parts[0]), parts[1], _DOCUMENTS in parts[2], _SESSIONS in parts[2])
