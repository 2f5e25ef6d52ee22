"""Rooms whose members read their messages."""

from datetime import datetime
from typing import Literal

from pylon import (
    Entity,
    File,
    Id,
    RichText,
    app,
    caller,
    field,
    index,
    now,
    policy,
    room_policy,
    search,
)

app("chat", version="0.1.0", user="User", session_expires_s=30 * 86400)


class User(Entity):
    email: str = field(unique=True, format="email")
    display_name: str = field(max_chars=80)
    avatar: File | None = field(default=None, accept=["image/*"], max_bytes=2_000_000)
    role: Literal["member", "lead"] = "member"
    access = policy(
        read="auth.userId != null",
        update="auth.userId == existing.id && data.role == existing.role",
    )


class Room(Entity, label="name"):
    name: str = field(unique=True)
    owner: Id[User] = field(default=caller)
    private: bool = False
    created_at: datetime = field(default=now)
    access = policy(
        read="!data.private || data.owner == auth.userId"
             " || exists(Member, room == data.id, user == auth.userId)",
        insert="data.owner == auth.userId",
        update="data.owner == existing.owner && data.owner == auth.userId",
    )


class Member(Entity):
    room: Id[Room] = field(on_delete="cascade")
    user: Id[User] = field(on_delete="cascade")
    by_user_room = index("user", "room", unique=True)
    access = policy(
        read="data.user == auth.userId || exists(Member, room == data.room, user == auth.userId)",
        insert="exists(Room, id == data.room, owner == auth.userId)"
               " || data.user == auth.userId && exists(Room, id == data.room, private == false)",
        delete="data.user == auth.userId",
    )


class Message(Entity):
    room: Id[Room] = field(on_delete="cascade")
    author: Id[User] = field(default=caller)
    text: RichText
    attachment: File | None = None
    sent_at: datetime = field(default=now)
    by_room = index("room", "sent_at")
    words = search(text=["text"], facets=["room"], sortable=["sent_at"])
    access = policy(
        read="exists(Member, room == data.room, user == auth.userId)",
        insert="data.author == auth.userId"
               " && exists(Member, room == data.room, user == auth.userId)",
    )


room_policy("room:*", join="exists(Member, user == auth.userId, room == room.id)")
