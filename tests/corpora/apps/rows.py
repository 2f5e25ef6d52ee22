"""The uses that an app's code has for rows and types: checked by mypy and pyright, and run."""

from __future__ import annotations

from datetime import datetime
from typing import assert_type

from chat import Member, Message, Room, User

from pylon import Id


def copy(room: Room, user: User) -> tuple[Member, Message]:
    assert_type(room.id, Id[Room])
    assert_type(room.created_at, datetime)
    assert_type(user.avatar, str | None)
    member = Member(room=room.id, user=user.id)
    return member, Message(room=member.room, text="hello")
