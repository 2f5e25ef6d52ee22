"""Live windows, changes and rooms, by both clients, against a real server."""

from __future__ import annotations

import asyncio
import threading
import uuid

import msgspec
import pytest

from pylon_client import (
    ClosedError,
    PermissionDeniedError,
    Pylon,
    ResyncRequired,
    RowMismatch,
    SocketRefused,
)
from tests.clients.python.app import Task
from tests.clients.python.both import STEP_S, Steps, both, entered, got
from tests.support.server import ADMIN_TOKEN


def new_list() -> str:
    return uuid.uuid4().hex


def titles(rows: list[Task]) -> list[str]:
    return [row.title for row in rows]


@both
async def test_a_window_follows_every_change_of_its_rows(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name = new_list()
        tasks = [
            await got(app.rows(Task).insert(title=f"t{n}", list=name, rank=n)) for n in range(4)
        ]
        query = app.rows(Task).where(list=name).order("-rank").limit(3)
        async with entered(query.live(timeout=STEP_S)) as window:
            assert titles(await got(window.next())) == ["t3", "t2", "t1"]
            await got(app.rows(Task).update(tasks[0], rank=9))
            assert await settled(window, ["t0", "t3", "t2"])
            await got(app.rows(Task).update(tasks[3], title="T3"))
            assert await settled(window, ["t0", "T3", "t2"])
            await got(app.rows(Task).delete(tasks[0]))
            assert await settled(window, ["T3", "t2", "t1"])
            assert window.state == "live"
            assert await got(window.more(5)) == 0
            assert titles(window.rows) == ["T3", "t2", "t1"]
            await got(app.rows(Task).insert(title="t4", list=name, rank=-1))
            assert await settled(window, ["T3", "t2", "t1", "t4"])
            with pytest.raises(TimeoutError):
                while True:  # a state that has been seen in `rows` may still wait
                    await got(window.next(timeout=0.1))
        with pytest.raises(ClosedError):
            await got(window.next())


async def settled(window, wanted: list[str]) -> bool:
    """Wait for a state with these titles."""
    while titles(window.rows) != wanted:
        await got(window.next())
    return True


@both
async def test_differences_rebuild_the_list(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name = new_list()
        first = await got(app.rows(Task).insert(title="a", list=name, rank=1))
        query = app.rows(Task).where(list=name).order("rank").limit(10)
        async with entered(query.live(timeout=STEP_S)) as window:
            diffs = Steps(window.diffs())
            reset = await diffs.next()
            rows = list(reset.rows)
            assert (reset.kind, titles(rows)) == ("reset", ["a"])
            second = await got(app.rows(Task).insert(title="b", list=name, rank=0))
            await got(app.rows(Task).update(first, rank=-1))
            await got(app.rows(Task).update(second, title="B"))
            await got(app.rows(Task).delete(first))
            seen = []
            while titles(rows) != ["B"]:
                diff = await diffs.next()
                seen.append(diff.kind)
                if diff.kind == "delete":
                    assert rows.pop(diff.index).id == diff.row_id
                elif diff.kind == "insert":
                    rows.insert(diff.index, diff.row)
                else:
                    rows = [row for row in rows if row.id != diff.row_id]
                    rows.insert(diff.index, diff.row)
            assert seen == ["insert", "update", "update", "delete"]
            await diffs.close()


@both
async def test_a_live_query_without_an_order_is_kept_by_id(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name = new_list()
        async with entered(app.rows(Task).where(list=name).live(timeout=STEP_S)) as window:
            assert await got(window.next()) == []
            ids = await got(app.rows(Task).insert_many(
                {"title": str(n), "list": name} for n in range(5)
            ))
            while len(window.rows) < 5:
                await got(window.next())
            assert [row.id for row in window.rows] == sorted(ids)


@both
async def test_a_window_that_is_refused_raises(make, url: str) -> None:
    class Wrong(msgspec.Struct):
        __pylon_entity__ = "Task"
        id: str
        title: int

    async with entered(make(url)) as app:
        await got(app.auth.guest())
        async with entered(app["Secret"].live(timeout=STEP_S)) as window:
            with pytest.raises(SocketRefused) as refused:
                await got(window.next())
            assert refused.value.code == "POLICY_DENIED"
            assert window.state == "error"
        name = new_list()
        await got(app["Task"].insert(title="text", list=name))
        async with entered(app.rows(Wrong).where(list=name).live(timeout=STEP_S)) as window:
            with pytest.raises(RowMismatch, match=r"title"):
                await got(window.next())


@both
async def test_a_new_identity_reads_its_windows_anew(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name = new_list()
        await got(app.rows(Task).insert(title="a", list=name))
        async with entered(app.rows(Task).where(list=name).live(timeout=STEP_S)) as window:
            assert titles(await got(window.next())) == ["a"]
            await got(app.auth.guest())
            await got(app.rows(Task).insert(title="b", list=name))
            assert await settled(window, ["a", "b"])


@both
async def test_changes_come_from_a_cursor_on(make, url: str) -> None:
    async with entered(make(url)) as app:
        await got(app.auth.guest())
        name = new_list()
        task = await got(app.rows(Task).insert(title="a", list=name))
        stream = Steps(app.changes(since=0, entities=[Task]))
        snapshot = [await stream.next()]
        while snapshot[-1].seq == 0:  # the last of a snapshot has the cursor
            snapshot.append(await stream.next())
        assert task in [change.row for change in snapshot]
        assert {change.kind for change in snapshot} == {"insert"}
        cursor = snapshot[-1].seq
        await got(app["Step"].insert(task=task.id, text="not seen"))
        await got(app.rows(Task).update(task, title="b"))
        update = await stream.next()
        await got(app.rows(Task).delete(task))
        delete = await stream.next()
        await stream.close()
        assert (update.kind, update.row.title, update.row_id) == ("update", "b", task.id)
        assert (delete.kind, delete.row) == ("delete", None)
        assert cursor < update.seq < delete.seq
        again = Steps(app.changes(since=cursor, entities=[Task]))
        assert await again.next() == delete  # a pull has the newest change of each row
        await again.close()
        with pytest.raises(ResyncRequired):
            await Steps(app.changes(since=delete.seq + 10**9)).next()


@both
async def test_changes_without_a_cursor_begin_now(make, url: str) -> None:
    async with entered(make(url, ADMIN_TOKEN)) as app:
        await got(app["Secret"].insert_many([{"text": "before"}]))
        stream = Steps(app.changes(entities=["Secret"]))

        def insert() -> None:
            with Pylon(url, ADMIN_TOKEN) as other:
                other["Secret"].insert_many([{"text": "after"}])

        timer = threading.Timer(1.0, insert)  # `changes` asks for the cursor within the first step
        timer.start()
        assert (await stream.next()).row["text"] == "after"
        await stream.close()
        timer.join()


@both
async def test_members_of_a_room_see_each_other(make, url: str) -> None:
    async with entered(make(url)) as ann, entered(make(url)) as bob:
        ann_id = (await got(ann.auth.guest())).user_id
        bob_id = (await got(bob.auth.guest())).user_id
        name = f"open:{new_list()}"
        async with entered(ann.room(name, data={"mood": "fine"})) as hers:
            events = Steps(hers.events(timeout=STEP_S))
            while not hers.is_live:
                await events.next()
            async with entered(bob.room(name)) as his:
                while (event := await events.next()).user_id != bob_id:
                    pass
                assert event.kind == "join"
                seen = Steps(his.events(timeout=STEP_S))
                while not his.is_live:
                    await seen.next()
                assert his.members[ann_id].data == {"mood": "fine"}
                await got(hers.set_presence({"mood": "better"}))
                while his.members[ann_id].data != {"mood": "better"}:
                    await seen.next()
                assert await got(his.broadcast("typing", {"on": True}))
                while (event := await events.next()).kind != "broadcast":
                    pass
                assert (event.user_id, event.topic, event.data) == (bob_id, "typing", {"on": True})
                await seen.close()
            while (event := await events.next()).kind != "leave":
                pass
            assert event.user_id == bob_id
            await events.close()
        with pytest.raises(PermissionDeniedError):
            async with entered(ann.room("closed:1")):
                pass


def test_closing_the_client_ends_what_waits(url: str) -> None:
    app = Pylon(url)
    app.auth.guest()
    window = app["Task"].where(list=new_list()).live()
    window.next(timeout=STEP_S)
    waited: list[BaseException] = []

    def wait() -> None:
        try:
            window.next()
        except ClosedError as ex:
            waited.append(ex)

    thread = threading.Thread(target=wait)
    thread.start()
    app.close()
    thread.join(STEP_S)
    assert len(waited) == 1
    with pytest.raises(ClosedError):
        app["Task"].live()


def test_threads_share_a_client(url: str) -> None:
    with Pylon(url) as app:
        app.auth.guest()
        name = new_list()
        with app.rows(Task).where(list=name).live(timeout=STEP_S) as window:
            threads = [
                threading.Thread(target=lambda n=n: app["Task"].insert(title=str(n), list=name))
                for n in range(8)
            ]
            for thread in threads:
                thread.start()
            while len(window.rows) < 8:
                window.next()
            for thread in threads:
                thread.join()
        assert not [t for t in threading.enumerate() if t in threads]


def test_many_windows_of_one_client_in_one_loop(url: str) -> None:
    async def run() -> None:
        from pylon_client import AsyncPylon

        async with AsyncPylon(url) as app:
            await app.auth.guest()
            names = [new_list() for _ in range(20)]

            async def follow(name: str) -> str:
                async with app.rows(Task).where(list=name).live(timeout=STEP_S) as window:
                    async for rows in window:
                        if rows:
                            return rows[0].title
                raise AssertionError

            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(follow(name)) for name in names]
                for name in names:
                    group.create_task(app["Task"].insert(title=name, list=name))
            assert [task.result() for task in tasks] == names

    asyncio.run(run())
