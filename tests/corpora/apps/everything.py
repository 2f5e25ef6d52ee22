"""Every declaration and every type once."""

from __future__ import annotations

import enum
from datetime import date, datetime
from decimal import Decimal
from typing import Literal

from pylon import (
    Entity,
    File,
    Id,
    Json,
    RichText,
    action,
    app,
    caller,
    caller_tenant,
    field,
    index,
    new_uuid,
    now,
    own_id,
    policy,
    query,
    rate_limit,
    relation,
    room_policy,
    route,
    search,
)

NO_TAGS: Json = {"tags": []}


class State(enum.StrEnum):
    OPEN = "open"
    PAID = "paid"


class Timestamps(Entity, abstract=True):
    created_at: datetime = field(default=now, fixed=True)
    updated_at: datetime = field(on_update=now)


class Order(Timestamps, label="number", crdt=False, extra={"x-note": "a note"}):
    number: str = field(unique="nocase", pattern="^[A-Z0-9-]+$", min_chars=3, max_chars=20)
    state: State = State.OPEN
    kind: Literal["goods", "service"] = "goods"
    total: Decimal = field(default=Decimal("0"), minimum="0", maximum="999999.99")
    due: date | None = None
    weight: float = 0.0
    count: int = field(default=1, minimum=1)
    paid: bool = False
    meta: Json = field(default=NO_TAGS)
    raw: Json | None = field(default=None, wire="text")
    buyer: str = field(default=caller, fixed=True)
    tenant: str | None = field(default=caller_tenant)
    secret: str = field(default=new_uuid, server_only=True)
    root: Id[Order] = field(default=own_id, references="none")
    parent: Id[Order] | None = field(default=None, on_delete="setNull")
    scan: File | None = field(default=None, accept=["application/pdf"], max_bytes=1_000_000)
    homepage: str | None = field(default=None, format="url")
    from_: str = field(default="", name="from")
    by_buyer = index("buyer", "-created_at", where={"paid": False})
    lines = relation("Line", field="order", many=True)
    words = search(text=["number"], facets=["state"], sortable=["created_at"], language="english")
    access = policy(allow="data.buyer == auth.userId")


class Line(Entity):
    order: Id[Order] = field(on_delete="cascade")
    text: RichText
    order_row = relation(Order, field="order")
    access = policy(
        read="exists(Order, id == data.order, buyer == auth.userId)",
        write="exists(Order, id == data.order, buyer == auth.userId)",
        name="lines of own orders",
    )


app("orders", version="1.2.0", references="check", auth={"trusted_origins": []})
policy(entity=Order, read="auth.hasRole('clerk') || data.buyer == auth.userId", name="clerks")
policy(action="close", allow="auth.hasRole('clerk')")
room_policy("order:*", join="auth.userId != null", broadcast="auth.hasRole('clerk')")
route("/orders/:id", mode="live", query="order", auth="user")
query("order", inputs={"id": Id[Order], "state": State | None})
action("close", inputs={"id": Id[Order], "note": (str | None, field(max_chars=200))})
rate_limit("orders_a_minute", match="entity:Order:insert", limit=10, window="1m", per="user")
