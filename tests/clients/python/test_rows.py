"""Rows, queries, transactions, errors and sign-in, by both clients, against a real server."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime, timedelta

import pytest

from pylon_client import (
    AuthenticationError,
    BadRequestError,
    ConflictError,
    NotFoundError,
    PermissionDeniedError,
    TransactionFailed,
    UnprocessableEntityError,
    UnreadableRow,
)
from tests.clients.python.app import Step, Task
from tests.clients.python.both import both, each, entered, got
from tests.support.server import ADMIN_TOKEN


def new_list() -> str:
    """A value that no other test uses."""
    return uuid.uuid4().hex


@both
async def test_a_row_is_inserted_read_changed_and_deleted(make, url: str) -> None:
    async with entered(make(url)) as app:
        me = await got(app.auth.guest())
        due = datetime(2026, 11, 28, 12, 0, 0, 123456, tzinfo=UTC)
        task = await got(app.rows(Task).insert(title="write", due=due, rank=3))
        assert task == Task(task.id, "write", "inbox", 3, False, me.user_id, None, due)
        assert await got(app.rows(Task).get(task.id)) == task
        assert (await got(app["Task"].get(task.id)))["due"] == "2026-11-28T12:00:00.123456Z"
        await got(app.rows(Task).update(task, title="read", due=None))
        changed = await got(app.rows(Task).get(task.id))
        assert (changed.title, changed.due, changed.rank) == ("read", None, 3)
        await got(app.rows(Task).delete(task.id))
        with pytest.raises(NotFoundError):
            await got(app.rows(Task).get(task.id))


@both
async def test_conditions_orders_and_pages(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name, start = new_list(), datetime(2026, 1, 1, tzinfo=UTC)
        ids = await got(app.rows(Task).insert_many(
            {"title": f"t{n}", "list": name, "rank": n % 7, "due": start + timedelta(days=n)}
            for n in range(230)
        ))
        assert len(set(ids)) == 230
        mine = app.rows(Task).where(list=name)
        assert await got(mine.count()) == 230
        assert [row.id async for row in each(mine)] == sorted(ids)
        ordered = [row async for row in each(mine.order("-rank", "due"))]
        assert ordered == sorted(ordered, key=lambda row: (-row.rank, row.due))
        assert len(ordered) == 230
        assert len(await got(mine.limit(205).all())) == 205
        few = mine.where(rank__gte=5, rank__ne=6, due__lt=start + timedelta(days=20)).order("due")
        assert [row.title for row in await got(few.all())] == ["t5", "t12", "t19"]
        assert [row.title for row in await got(few.where({"title": {"$in": ["t12"]}}).all())] == [
            "t12"
        ]
        assert (await got(few.first())).title == "t5"
        assert await got(few.where(title="none").first()) is None
        assert [row.title for row in await got(mine.where(title__in=["t1", "t2"]).all())] == [
            "t1", "t2"
        ]
        position = {"due": start + timedelta(days=5), "id": ids[5]}
        after = await got(few.after(**position).all())
        assert [row.title for row in after] == ["t12", "t19"]
        assert await got(mine.aggregate(count="*", groupBy=["rank"])) == [
            {"count": 33, "rank": rank} for rank in range(6)
        ] + [{"count": 32, "rank": 6}]
        with pytest.raises(TypeError, match="near is no operator"):
            mine.where(rank__near=1)


@both
async def test_a_transaction_is_carried_out_as_a_whole_or_not_at_all(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name = new_list()
        old = await got(app.rows(Task).insert(title="old", list=name))
        async with entered(app.transaction()) as t:
            task = t.insert(Task, title="new", list=name)
            step = t.insert("Step", task=task, text="first")
            t.update(old, title="older")
            t.delete("Step", t.insert(Step, task=task, text="never seen"))
        assert (await got(app.rows(Step).get(step))).task == task
        titles = {row.title for row in await got(app.rows(Task).where(list=name).all())}
        assert titles == {"new", "older"}
        with pytest.raises(TransactionFailed, match="titel") as failed:
            async with entered(app.transaction()) as t:
                t.update(old, title="oldest")
                t.insert(Task, titel="misspelt")
        assert (failed.value.operation, failed.value.code) == (1, "INVALID_COLUMN")
        with pytest.raises(ZeroDivisionError):
            async with entered(app.transaction()) as t:
                t.delete(old)
                _ = 1 / 0
        assert (await got(app.rows(Task).get(old.id))).title == "older"


@both
async def test_refusals_are_errors_of_their_kind(make, url: str) -> None:
    async with entered(make(url)) as app, entered(make(url)) as other:
        with pytest.raises(PermissionDeniedError):
            await got(app["Step"].insert(task="0" * 40, text="nobody"))
        await got(app.auth.guest())
        await got(other.auth.guest())
        with pytest.raises(BadRequestError) as misspelt:
            await got(app["Task"].insert(titel="x"))
        assert (misspelt.value.code, misspelt.value.status) == ("INVALID_COLUMN", 400)
        assert misspelt.value.request_id
        assert misspelt.value.body["field"] == "titel"
        code = uuid.uuid4().hex
        task = await got(app.rows(Task).insert(title="x", code=code))
        with pytest.raises(ConflictError) as taken:
            await got(app.rows(Task).insert(title="y", code=code))
        assert taken.value.code == "UNIQUE_VIOLATION"
        with pytest.raises(PermissionDeniedError):
            await got(other.rows(Task).update(task, title="stolen"))
        with pytest.raises(UnreadableRow) as hidden:
            await got(app["Secret"].insert(text="?"))
        assert len(hidden.value.row_id) == 40
        with pytest.raises(NotFoundError):
            await got(app["Task"].delete("0" * 40))


@both
async def test_a_key_makes_a_write_happen_once(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name, key = new_list(), uuid.uuid4().hex
        mine = app.rows(Task).where(list=name)
        first = await got(mine.insert(title="once", list=name, idempotency_key=key))
        again = await got(mine.insert(title="once", list=name, idempotency_key=key))
        assert first == again
        assert await got(mine.count()) == 1
        with pytest.raises(UnprocessableEntityError):
            await got(mine.insert(title="twice", list=name, idempotency_key=key))


@both
async def test_a_version_guards_a_write(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        inserted = await got(app.rows(Task).with_raw_response.insert(title="a"))
        seq = int(inserted.answer.headers["etag"].strip('"'))
        task = inserted.value
        await got(app.rows(Task).update(task, title="b", if_seq=seq))
        with pytest.raises(ConflictError) as stale:
            await got(app.rows(Task).update(task, title="c", if_seq=seq))
        assert stale.value.status == 412
        with pytest.raises(ConflictError):
            await got(app.rows(Task).delete(task, if_seq=seq))
        raw = await got(app.rows(Task).with_raw_response.get(task.id))
        assert (raw.value.title, raw.answer.status) == ("b", 200)


@both
async def test_sessions_begin_are_renewed_and_end(make, url: str) -> None:
    email, password = f"{uuid.uuid4().hex}@example.com", "correct horse 9 battery"
    async with entered(make(url)) as app:
        assert (await got(app.auth.me())).user_id is None
        made = await got(app.auth.register(email, password, displayName="Ann"))
        assert (await got(app.auth.me())).user_id == made.user_id
        await got(app.auth.sign_out())
        assert (await got(app.auth.me())).user_id is None
        with pytest.raises(AuthenticationError) as wrong:
            await got(app.auth.password(email, "wrong"))
        assert wrong.value.code == "INVALID_CREDENTIALS"
        signed_in = await got(app.auth.password(email, password))
        assert signed_in.user_id == made.user_id
        renewed = await got(app.auth.refresh())
        assert renewed.token != signed_in.token
        assert app.auth.token == renewed.token
        assert (await got(app["User"].get(made.user_id)))["displayName"] == "Ann"


@both
async def test_a_session_near_its_end_is_renewed_by_itself(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        before = await got(app.auth.refresh())
        app._core.session.refresh_at_s = 0.0
        await got(app.auth.me())
        assert app.auth.token != before.token
        assert (await got(app.auth.me())).user_id == before.user_id


@both
async def test_a_function_gives_tokens(make, url: str) -> None:
    given = []

    def next_token() -> str:
        given.append(len(given))
        return "pk.unknown.key" if len(given) == 1 else ADMIN_TOKEN

    async with entered(make(url, next_token)) as app:
        assert (await got(app.auth.me())).is_admin
        assert (await got(app.auth.me())).is_admin
    assert len(given) == 2


@both
async def test_options_of_one_call_and_plain_requests(make, url: str) -> None:
    async with entered(make(url, ADMIN_TOKEN)) as app:
        headers = {"X-Request-Id": "mine-1"}
        slow = app.with_options(timeout=5, max_retries=0, default_headers=headers)
        answer = await got(slow.raw_request("GET", "/api/auth/me"))
        assert answer.headers["x-request-id"] == "mine-1"
        assert (await got(app.request("GET", "/api/auth/me")))["is_admin"] is True
        assert (await got(app.rows("Task").where(list=new_list()).all())) == []


def test_settings_come_from_the_environment(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pylon_client import Pylon

    monkeypatch.setenv("PYLON_URL", url + "/")
    monkeypatch.setenv("PYLON_TOKEN", ADMIN_TOKEN)
    with Pylon() as app:
        assert app.auth.me().is_admin
    monkeypatch.setenv("PYLON_URL", "localhost:4321")
    with pytest.raises(ValueError, match="PYLON_URL"):
        Pylon()
