"""`pylonctl backup verify`, `list`, `drill` and `prune`, on the archive of a real server."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until


@pytest.fixture
def archived(make_server: Callable[..., PylonServer], tmp_path: Path) -> PylonServer:
    """A stopped server whose archive has a snapshot and five rows after it."""
    hook = tmp_path / "hook.sh"
    hook.write_text(f"#!/bin/sh\ncat >> {tmp_path}/hooked\n")
    hook.chmod(0o700)
    server = make_server(
        PYLON_BACKUP_URL=f"file://{tmp_path}/archive", PYLON_BACKUP_INTERVAL_S="1",
        PYLON_BACKUP_HOOK=str(hook),
    ).start()
    archive = tmp_path / "archive"
    wait_until("a snapshot is there",
               lambda: list(archive.glob("*/snapshots/*/MANIFEST.json")) != [])
    for n in range(5):
        row = {"n": n, "sender": "x"}
        assert server.request("POST", "/api/entities/Tick", row, token=ADMIN_TOKEN)[0] == 201
    assert server.terminate() == 0
    return server


def run(server: PylonServer, *args: str) -> tuple[int, dict[str, Any]]:
    done = server.ctl("--json", "backup", *args)
    lines = done.stdout.splitlines()
    assert lines, done.stderr
    body: dict[str, Any] = json.loads(lines[-1])
    return done.returncode, body


def test_verbs_of_a_sound_archive(archived: PylonServer) -> None:
    folder = archived.folder.parent
    code, listed = run(archived, "list")
    assert code == 0
    (generation,) = listed["generations"]
    assert generation["last_seq"] == 5 and len(generation["snapshots"]) == 1

    code, verified = run(archived, "verify", f"file://{folder}/archive")
    assert code == 0 and verified["ok"] is True
    assert verified["seq"] == 5 and verified["rows"] > 5
    assert verified["restored_to"]["segments"] > 0
    at = generation["snapshots"][0]["at"]
    assert run(archived, "verify", f"file://{folder}/archive", "--at", at)[1]["seq"] == 0

    code, drilled = run(archived, "drill", "--report", str(folder / "drills"))
    assert code == 0 and drilled["ok"] is True
    assert drilled["seq"] == 5 and drilled["running_seq"] is None
    assert all(step["ok"] for step in drilled["steps"]) and len(drilled["steps"]) == 4
    text = Path(drilled["report"]).read_text()
    assert "passed" in text and "seq 5" in text and "in the backup" in text
    report = json.loads(Path(drilled["report"]).with_suffix(".json").read_text())
    assert report["ok"] is True and report["rows"] == drilled["rows"]

    code, pruned = run(archived, "prune", "--dry-run")
    assert code == 0 and pruned["dry_run"] is True
    assert pruned["deleted_snapshots"] == [] and len(pruned["kept_snapshots"]) == 1
    scratch = [path.name for path in archived.db_path.parent.iterdir()]
    assert not [name for name in scratch if name.startswith("pylon-")]
    assert not (folder / "hooked").exists()


def test_drill_of_a_damaged_archive_fails_with_a_report_and_tells_the_hook(
    archived: PylonServer,
) -> None:
    folder = archived.folder.parent
    segment = sorted(folder.glob("archive/*/segments/*.seg"))[-1]
    segment.write_bytes(segment.read_bytes()[:-1])
    code, drilled = run(archived, "drill")
    assert code == 1 and drilled["ok"] is False
    assert "is damaged" in drilled["error"]
    assert drilled["steps"][-1]["ok"] is False
    report = Path(drilled["report"])
    assert report.parent == archived.db_path.parent / "drills"
    assert "FAILED" in report.read_text() and "is damaged" in report.read_text()
    event = json.loads((folder / "hooked").read_text())
    assert (event["event"], event["step"]) == ("backup.failed", "drill")
    assert "is damaged" in event["error"]


def test_bundles_are_drilled_checked_deeply_and_pruned(archived: PylonServer) -> None:
    folder = archived.folder.parent / "bundles"
    for name in ("one", "two"):
        assert run(archived, str(folder / name))[0] == 0
    code, verified = run(archived, "verify", str(folder / "one"), "--deep")
    assert code == 0 and verified["rows"] > 5
    code, drilled = run(archived, "drill", str(folder / "two"))
    assert code == 0 and drilled["seq"] == 5
    code, pruned = run(archived, "prune", str(folder), "--keep", "days=1")
    assert code == 0 and len(pruned["kept"]) == 2
    stated = json.loads((folder / "one" / "MANIFEST.json").read_text())
    stated["tables"]["Tick"]["rows"] += 1
    (folder / "one" / "MANIFEST.json").write_text(json.dumps(stated))
    done = archived.ctl("backup", "verify", str(folder / "one"))
    assert done.returncode == 1
    assert "the table Tick has 5 rows, MANIFEST.json says 6" in done.stderr


def test_failed_bundle_tells_the_hook(archived: PylonServer) -> None:
    folder = archived.folder.parent
    (folder / "taken").mkdir()
    (folder / "taken" / "file").write_text("mine")
    assert archived.ctl("backup", str(folder / "taken")).returncode == 1
    event = json.loads((folder / "hooked").read_text())
    assert (event["step"], event["place"]) == ("bundle", str(folder / "taken"))
    assert "not an empty folder" in event["error"]


@pytest.mark.parametrize("args", [
    ("verify",), ("list", "a", "b"), ("some", "folders"), ("x", "--dry-run"),
    ("prune", "--keep", "days=0"), ("drill", "--encrypt"), ("x", "--at", "2026-01-01T00:00:00Z"),
], ids="-".join)
def test_words_and_options_that_do_not_fit_are_refused(
    make_server: Callable[..., PylonServer], args: tuple[str, ...]
) -> None:
    done = make_server().ctl("backup", *args)
    assert done.returncode == 64 or "has no bundle" in done.stderr or "no database" in done.stderr


def test_verbs_need_an_archive_and_postgresql_has_its_own(
    make_server: Callable[..., PylonServer],
) -> None:
    server = make_server()
    done = server.ctl("backup", "list")
    assert done.returncode == 1
    assert "PYLON_BACKUP_URL" in done.stderr
    server.env["DATABASE_URL"] = "postgres://nobody@127.0.0.1:1/none"
    for verb in (("backup", "drill"), ("restore", "--seq", "1", "--yes")):
        done = server.ctl(*verb)
        assert done.returncode == 1
        assert "docs/postgres-backup.md" in done.stderr
    server.env["PYLON_BACKUP_URL"] = "file:///tmp/x"
    done = server.ctl("start")
    assert done.returncode == 78
    assert "docs/postgres-backup.md" in done.stderr
