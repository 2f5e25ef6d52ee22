"""Shards, administration and classes of rows, by both clients, against a real server."""

from __future__ import annotations

import io
import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypedDict

import pytest

from pylon_client import PermissionDeniedError, RowMismatch, SocketRefused
from tests.clients.python.both import STEP_S, Steps, both, entered, got
from tests.support.server import ADMIN_TOKEN


@both
async def test_inputs_move_a_shard_and_wrong_ones_are_refused(make, url: str) -> None:
    async with entered(make(url)) as app:
        me = (await got(app.auth.guest())).user_id
        async with entered(app.shard(f"line:{uuid.uuid4().hex}")) as shard:
            assert (await got(shard.state()))["places"] == {me: 0}
            states = Steps(shard.states(timeout=STEP_S))
            assert (shard.input({"dx": 1}), shard.input({"dx": 5})) == (1, 2)
            while not (refused := shard.refusals()):
                await states.next()
            assert [(r.client_seq, r.reason) for r in refused] == [(2, "one step at a time")]
            while (await states.next())["places"] != {me: 1}:
                pass
            assert shard.tick > 0
            await states.close()
        with pytest.raises(SocketRefused) as unknown:
            async with entered(app.shard("nothing:1")):
                pass
        assert unknown.value.close_code == 4404


@both
async def test_administrators_care_for_users_and_sessions(make, url: str) -> None:
    email, password = f"{uuid.uuid4().hex}@example.com", "a long enough passphrase 7"
    async with entered(make(url, ADMIN_TOKEN)) as admin, entered(make(url)) as app:
        made = await got(admin.admin.users.create(email, password=password))
        user_id = (await got(app.auth.password(email, password))).user_id
        assert user_id in json.dumps(made)
        assert user_id in json.dumps(await got(admin.admin.users.list(user_id)))
        assert await got(admin.admin.sessions.list(user_id))
        await got(admin.admin.users.lock(user_id, reason="test"))
        assert (await got(app.auth.me())).user_id is None
        with pytest.raises(PermissionDeniedError) as locked:
            await got(app.auth.password(email, password))
        assert locked.value.code == "ACCOUNT_LOCKED"
        await got(admin.admin.users.unlock(user_id))
        await got(app.auth.password(email, password))
        await got(admin.admin.sessions.purge(user_id=user_id))
        assert (await got(app.auth.me())).user_id is None
        with pytest.raises(PermissionDeniedError):
            await got(app.admin.users.list())


@both
async def test_an_export_streams_rows_and_an_import_takes_them(
    make, url: str, tmp_path: Path
) -> None:
    async with entered(make(url, ADMIN_TOKEN)) as app:
        name = uuid.uuid4().hex
        await got(app["Task"].insert_many(
            {"title": f"{n}", "list": name, "owner": "x"} for n in range(150)
        ))
        sink = io.BytesIO()
        written = await got(app.admin.export("Task", sink))
        assert written == len(sink.getvalue())
        assert sink.getvalue().count(name.encode()) == 150
        target = tmp_path / "rows.jsonl"
        await got(app.admin.export("Task", target))
        assert [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]
        rows = [{"title": "again", "list": name, "owner": "x"}]
        await got(app.admin.import_rows({"Task": rows}, new_ids=True))
        assert await got(app["Task"].where(list=name).count()) == 151


@dataclass
class Plain:
    """A dataclass whose entity has another name."""

    __pylon_entity__: ClassVar[str] = "Task"
    id: str
    title: str


class Typed(TypedDict):
    """A row as a typed dict."""

    id: str
    title: str


class Own:
    """A class that makes itself of a row."""

    __pylon_entity__ = "Task"

    def __init__(self, row: Mapping[str, object]) -> None:
        self.id = str(row["id"])
        self.title = row["title"]

    @classmethod
    def __pylon_from_row__(cls, row: Mapping[str, object]) -> Self:
        return cls(row)


class Narrow(TypedDict):
    """A class that no row of Task fits."""

    title: int


@both
async def test_rows_are_instances_of_any_class(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        plain = await got(app.rows(Plain).insert(title="a"))
        assert isinstance(plain, Plain)
        own = await got(app.rows(Own).get(plain.id))
        assert (type(own), own.id, own.title) == (Own, plain.id, "a")
        async with entered(app.transaction()) as t:
            t.update(own, title="b")
        Typed.__pylon_entity__ = "Task"  # type: ignore[attr-defined]
        assert (await got(app.rows(Typed).get(plain.id)))["title"] == "b"
        Narrow.__pylon_entity__ = "Task"  # type: ignore[attr-defined]
        with pytest.raises(RowMismatch, match="Task"):
            await got(app.rows(Narrow).get(plain.id))
