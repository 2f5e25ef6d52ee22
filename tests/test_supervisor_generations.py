"""Reload and scaling of a supervisor over stand-in workers: what is refused, and what may die."""

from __future__ import annotations

import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from pylon.config import load
from pylon.errors import InvalidData, PylonError, ReloadBusy, ReloadRefused
from supervisor.setting_changes import changed_settings, check_scale, with_workers
from tests.support.supervised import MANIFEST, Maker, Supervised, supervised_maker
from tests.support.wait import WAIT_S, wait_until

KEY = "".join(f"{number:02x}" for number in range(7, 231, 7))


@pytest.fixture
def make(processes: None, tmp_path: Path) -> Iterator[Maker]:
    with supervised_maker(tmp_path) as maker:
        yield maker


def pids(it: Supervised) -> dict[str, list[int]]:
    return {role: state["pids"] for role, state in it.status()["roles"].items()}


def reload(it: Supervised) -> dict[str, Any]:
    return it.control.ask("reload")


def set_mood(it: Supervised, role: str, mood: str) -> None:
    (it.folder / f"mood-{role}").write_text(mood)


def metric(it: Supervised, name: str) -> dict[str, float]:
    """The values of a family on the metrics page, by their labels."""
    page: str = it.control.ask("metrics")["body"]
    lines = [line.rpartition(" ") for line in page.splitlines() if line.startswith(name)]
    return {labels.removeprefix(name): float(value) for labels, _, value in lines}


class Following(threading.Thread):
    """A control client that follows a reload."""

    def __init__(self, it: Supervised) -> None:
        super().__init__(daemon=True)
        self.it = it
        self.lines: list[dict[str, Any]] = []
        self.error: PylonError | None = None
        self.start()

    def run(self) -> None:
        try:
            for line in self.it.control.call("reload"):
                self.lines.append(line)
        except PylonError as ex:
            self.error = ex

    def wait_for(self, step: str) -> None:
        wait_until(step, lambda: any(line["step"] == step for line in self.lines))

    def last(self) -> dict[str, Any]:
        self.join(WAIT_S)
        assert not self.is_alive()
        return self.lines[-1]


def test_reload_replaces_all_workers_and_counts_it(make: Maker) -> None:
    it = make(PYLON_WS_WORKERS="2").start()
    before = pids(it)
    assert reload(it)["generation"] == 2
    after = pids(it)
    assert {role: len(found) for role, found in after.items()} == {
        "http": 1, "ws": 2, "sse": 1, "shards": 1, "identity": 1,
    }
    assert not {p for found in before.values() for p in found} & {
        p for found in after.values() for p in found
    }
    status = it.status()
    assert (status["generation"], status["restarts"], status["ready"]) == (2, 0, True)
    assert metric(it, "pylon_generation") == {"": 2}
    assert metric(it, "pylon_reloads_total") == {'{result="done"}': 1}
    assert reload(it)["generation"] == 3
    assert it.end() == 0, it.log()


def test_workers_get_changed_settings_and_a_scaling_survives(make: Maker) -> None:
    it = make(PYLON_LIST_LIMIT="500").start()
    assert it.control.ask("scale", workers={"ws": 3})["ok"]
    assert len(pids(it)["ws"]) == 3
    (it.folder / "settings").write_text("PYLON_LIST_LIMIT=700\n")
    assert reload(it)["generation"] == 3
    worker = pids(it)["sse"][0]
    environ = Path(f"/proc/{worker}/environ").read_bytes()
    assert b"PYLON_LIST_LIMIT=700" not in environ  # that of the template's start
    begun = it.events("reload.begun")[-1]
    assert begun["changed"] == ["PYLON_LIST_LIMIT"]
    assert begun["workers"]["ws"] == 3
    assert it.status()["scaled"] == {"ws": 3}
    (it.folder / "settings").write_text("PYLON_LIST_LIMIT=700\nPYLON_WS_WORKERS=2\n")
    assert reload(it)["generation"] == 4
    assert len(pids(it)["ws"]) == 2
    assert it.status()["scaled"] == {}
    for count in (3, 2, 1):  # whoever hears that a change has ended may ask for the next at once
        assert it.control.ask("scale", workers={"ws": count, "http": 1})["ok"]
        assert len(pids(it)["ws"]) == count
    assert it.end() == 0, it.log()


@pytest.mark.parametrize(("line", "named"), [
    ("PYLON_PORT=1", "PYLON_PORT is now '1', which a reload cannot change: run pylonctl restart"),
    (f"PYLON_SECRET_KEY={KEY}", "PYLON_SECRET_KEY is now (hidden), which a reload cannot"),
    ("PYLON_LIST_LIMIT=many", "PYLON_LIST_LIMIT is 'many'"),
    ("PYLON_CORS_ORIGIN=*", 'PYLON_CORS_ORIGIN="*" is refused'),
], ids=["port", "secret", "value", "unsafe"])
def test_a_refused_setting_is_named_and_nothing_changes(
    make: Maker, line: str, named: str
) -> None:
    it = make().start()
    before = pids(it)
    (it.folder / "settings").write_text(line + "\n")
    with pytest.raises(ReloadRefused) as caught:
        reload(it)
    assert named in caught.value.message
    assert "\n" not in caught.value.message
    assert pids(it) == before
    assert metric(it, "pylon_reloads_total") == {'{result="refused"}': 1}
    assert it.process is not None
    it.process.send_signal(signal.SIGHUP)
    wait_until("logged", lambda: it.events("reload.refused"))
    assert named in it.events("reload.refused")[0]["message"]
    (it.folder / "settings").write_text("")
    assert reload(it)["generation"] == 2
    assert it.end() == 0, it.log()


def test_a_changed_manifest_begins_the_server_anew_and_a_bad_one_is_refused(make: Maker) -> None:
    it = make().start()
    path = it.folder / "pylon.manifest.json"
    before = pids(it)
    path.write_text(json.dumps({**MANIFEST, "entities": []}))
    with pytest.raises(ReloadRefused, match="SCHEMA_EMPTY"):
        reload(it)
    assert pids(it) == before
    changed = json.loads(json.dumps(MANIFEST))
    changed["entities"][0]["fields"].append(
        {"name": "note", "type": "string", "optional": True, "unique": False}
    )
    path.write_text(json.dumps(changed))
    last = reload(it)
    assert (last["step"], last["generation"]) == ("draining", 2)
    wait_until("ready", lambda: (s := it.status()).get("ready") and s["generation"] == 2)
    assert it.status()["pid"] == it.process.pid if it.process else False
    assert it.end() == 0, it.log()


@pytest.mark.parametrize("mood", ["dies", "silent"])
def test_new_workers_that_do_not_start_leave_the_old_ones(make: Maker, mood: str) -> None:
    it = make(LIMIT_WORKER_BOOT_S="3").start()
    before = pids(it)
    set_mood(it, "ws", mood)
    last = reload(it)
    if mood == "silent":  # it has beaten once, so it was ready
        assert last["ok"]
    else:
        assert not last["ok"]
        assert "ws/2 could not be started" in last["message"]
        assert pids(it) == before
        assert metric(it, "pylon_reloads_total") == {'{result="failed"}': 1}
        (it.folder / "mood-ws").unlink()
        assert reload(it)["ok"]
    assert it.end() in (0, 75), it.log()


def processes_in(folder: Path) -> list[str]:
    """Return the pids of all processes that work in a folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # it has ended, or is another user's
            if (process / "cwd").readlink() == folder:
                found.append(process.name)
    return found


@pytest.mark.parametrize("victim", ["new", "old", "template"])
def test_a_process_that_is_killed_meanwhile_does_not_stop_a_reload(
    make: Maker, victim: str
) -> None:
    it = make(PYLON_WS_WORKERS="2").start()
    before = pids(it)
    set_mood(it, "sse", "dies")  # so that the reload waits
    following = Following(it)
    following.wait_for("starting")
    wait_until("new ws workers", lambda: len(it.status()["roles"]["ws"]["pids"]) == 2)
    started = wait_until("sse tries", lambda: [
        e for e in it.events("child.started") if e["child"] in ("ws/3", "ws/4")
    ])
    match victim:
        case "new":
            os.kill(started[0]["pid"], signal.SIGKILL)
        case "old":
            os.kill(before["ws"][0], signal.SIGKILL)
        case "template":
            os.kill(it.events("template.ready")[-1]["pid"], signal.SIGKILL)
    (it.folder / "mood-sse").unlink()
    assert following.last()["ok"], it.log()
    status = it.status()
    assert status["ready"]
    assert len(status["roles"]["ws"]["pids"]) == 2
    assert not set(status["roles"]["ws"]["pids"]) & set(before["ws"])
    assert it.end() == 0, it.log()
    # Nor does a worker that the killed template had forked, and the supervisor never knew.
    wait_until("no process is left", lambda: processes_in(it.folder) == [])


def test_old_workers_that_do_not_end_are_killed(make: Maker) -> None:
    it = make(
        STAND_IN_WS="stubborn", PYLON_DRAIN_SECS="0.1", PYLON_DRAIN_SPREAD_S="0",
        LIMIT_DRAIN_GRACE_S="0.2",
    ).start()
    before = pids(it)["ws"]
    last = reload(it)
    assert (last["ok"], last["killed"]) == (True, True)
    assert pids(it)["ws"] != before
    assert it.end() == 75


def test_a_second_reload_is_refused_and_a_second_sighup_waits(make: Maker) -> None:
    it = make(STAND_IN_SSE="slow").start()
    following = Following(it)
    following.wait_for("starting")
    with pytest.raises(ReloadBusy, match="under way"):
        reload(it)
    assert it.process is not None
    it.process.send_signal(signal.SIGHUP)
    wait_until("queued", lambda: it.events("reload.queued"))
    assert following.last()["generation"] == 2
    wait_until("the queued one", lambda: it.status()["generation"] == 3)
    assert it.end() == 0, it.log()


def test_sigterm_in_the_middle_ends_both_generations(make: Maker) -> None:
    it = make().start()
    set_mood(it, "sse", "dies")
    following = Following(it)
    following.wait_for("starting")
    assert it.end() == 0, it.log()
    assert following.last()["message"] == "the server stops"
    assert it.events("drain")[-1]["step"] == "ended"


@pytest.mark.parametrize(("wanted", "named"), [
    ({"shards": 2}, "set PYLON_SHARD_WORKERS and run pylonctl restart"),
    ({"identity": 2}, "identity cannot be scaled"),
    ({"http": 0}, "http=0"),
    ({"ws": 0}, "set PYLON_WS_WORKERS=0"),
    ({"http": 65}, "http=65"),
    ({"sse": "x"}, "sse=x"),
    ({"nope": 1}, "no role; expected http, ws, sse"),
    ({}, "http=4"),
], ids=["shards", "identity", "none", "off", "many", "text", "unknown", "empty"])
def test_what_cannot_be_scaled(wanted: dict[str, Any], named: str) -> None:
    with pytest.raises(InvalidData) as caught:
        check_scale(load({}).config, wanted)
    assert named in caught.value.message


def test_settings_with_other_workers_differ_in_them_alone() -> None:
    loaded = load({})
    scaled = with_workers(loaded, {"http": 5})
    assert scaled.config.http_workers == 5
    assert changed_settings(loaded, scaled) == ["PYLON_HTTP_WORKERS"]
