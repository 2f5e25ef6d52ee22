"""Each marked line has one error that type checkers find."""

from __future__ import annotations

from chat import Member, Room, User

from pylon import Entity, Id, field

room = Room(name="x")
user = User(email="a@example.org", display_name="a")
Room(nam="x")  # error
Member(room=user.id, user=user.id)  # error
wrong: Id[User] = room.id  # error
room.name = "y"  # error


class Thing(Entity):
    count: int = field(default="one")  # error
    unique: str = field(uniqe=True)  # error
