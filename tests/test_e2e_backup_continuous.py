"""Continuous backup of real servers: under load, through kill -9, and back to any moment."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.support.load import Writer
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import wait_until


@pytest.fixture
def shipped(make_server: Callable[..., PylonServer], tmp_path: Path) -> PylonServer:
    """A server that ships to a folder, and may be stopped and killed."""
    return make_server(
        PYLON_BACKUP_URL=f"file://{tmp_path}/archive", PYLON_BACKUP_INTERVAL_S="1",
    ).start()


def archive_files(server: PylonServer, kind: str) -> list[Path]:
    return sorted((server.folder.parent / "archive").glob(f"*/{kind}/[0-9]*"))


def has_snapshot(server: PylonServer) -> bool:
    return any((path / "MANIFEST.json").is_file() for path in archive_files(server, "snapshots"))


def metric(server: PylonServer, name: str) -> float:
    _, body, _ = server.request(
        "GET", "/metrics", token=ADMIN_TOKEN, headers={"Accept": "text/plain"}
    )
    names = (f"{name} ", f"{name}{{")
    return sum(
        float(line.split()[-1]) for line in str(body).splitlines() if line.startswith(names)
    )


def insert(server: PylonServer, n: int) -> float:
    """Returns when it was acknowledged, by the wall clock."""
    status, body, _ = server.request(
        "POST", "/api/entities/Tick", {"n": n, "sender": "x"}, token=ADMIN_TOKEN
    )
    assert status == 201, body
    return time.time()


def restore(server: PylonServer, *args: str) -> dict[str, Any]:
    done = server.ctl("--json", "restore", "--yes", *args)
    assert done.returncode == 0, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def ns(server: PylonServer) -> list[int]:
    return sorted(row["n"] for row in server.rows("Tick").values())


def shipped_all(server: PylonServer) -> None:
    head = server.status()["head_seq"]

    def shipped() -> bool:
        seqs = [int(path.name.split("-")[4]) for path in archive_files(server, "segments")]
        return max(seqs, default=0) >= head

    wait_until("everything is in the archive", shipped)


def test_each_moment_can_be_restored_and_clients_resync(shipped: PylonServer) -> None:
    wait_until("the first snapshot is there", lambda: has_snapshot(shipped))
    acknowledged = []
    for n in range(1, 7):
        acknowledged.append(insert(shipped, n))
        time.sleep(0.01)  # lets the times of two commits differ
    head = shipped.status()["head_seq"]
    shipped_all(shipped)
    assert shipped.terminate() == 0
    at = datetime.fromtimestamp(acknowledged[2], UTC).isoformat()
    report = restore(shipped, "--at", at)
    assert report["seq"] == head - 3
    assert report["restored_to"]["gap"] == ""
    shipped.start()
    assert ns(shipped) == [1, 2, 3]
    status, body, _ = shipped.request(
        "GET", f"/api/sync/pull?since={head}", token=ADMIN_TOKEN
    )
    assert (status, body["error"]["code"]) == (410, "RESYNC_REQUIRED")
    # The history that was left is still in the archive, in the generation before.
    wait_until("a snapshot of the restored database is there",
               lambda: len({path.parts[-3] for path in archive_files(shipped, "snapshots")
                            if (path / "MANIFEST.json").is_file()}) == 2)
    insert(shipped, 100)
    shipped_all(shipped)
    assert shipped.terminate() == 0
    assert restore(shipped, "--seq", str(head - 1))["seq"] == head - 1
    shipped.start()
    assert ns(shipped) == [1, 2, 3, 4, 5]


def test_kill_9_and_clean_ends_under_load_lose_nothing_and_begin_no_generation(
    shipped: PylonServer,
) -> None:
    wait_until("the first snapshot is there", lambda: has_snapshot(shipped))
    writers = [Writer(shipped, f"w{n}", ADMIN_TOKEN) for n in range(3)]
    for writer in writers:
        writer.start()
    for end in (shipped.kill, shipped.terminate, shipped.kill):
        before = sum(writer.score.acknowledged for writer in writers)
        wait_until("the load goes on",
                   lambda before=before: sum(w.score.acknowledged for w in writers) > before + 150)
        end()
        shipped.start()
    for writer in writers:
        writer.halt()
    rows = shipped.rows("Tick")
    shipped_all(shipped)
    wait_until("the lag is short", lambda: metric(shipped, "pylon_backup_lag_seconds") < 2)
    generations = {path.parts[-3] for path in archive_files(shipped, "segments")}
    assert len(generations) == 1, shipped.log()
    assert shipped.terminate() == 0
    for path in shipped.db_path.parent.glob("*"):  # the machine is lost
        if path.is_file():
            path.unlink()
    report = restore(shipped)
    assert report["restored_to"]["segments"] > 0
    shipped.start()
    assert shipped.rows("Tick") == rows


def test_archive_that_is_away_delays_nothing_and_gets_everything_later(
    shipped: PylonServer,
) -> None:
    wait_until("the first snapshot is there", lambda: has_snapshot(shipped))
    archive = shipped.folder.parent / "archive"
    archive.rename(archive.with_name("away"))
    archive.write_bytes(b"no folder")
    for n in range(5):
        insert(shipped, n)
    wait_until("the failure is counted",
               lambda: metric(shipped, "pylon_backup_failures_total") >= 1)
    assert "backup.failing" in shipped.log()
    archive.unlink()
    archive.with_name("away").rename(archive)
    shipped_all(shipped)
    assert len({path.parts[-3] for path in archive_files(shipped, "segments")}) == 1
    wait_until("the lag is short", lambda: metric(shipped, "pylon_backup_lag_seconds") < 2)


def test_restore_is_refused_while_the_server_runs_and_for_what_the_archive_lacks(
    shipped: PylonServer,
) -> None:
    refused = shipped.ctl("restore", "--yes", "--at", "2026-01-01T00:00:00Z")
    assert refused.returncode == 1
    assert "stop it first" in refused.stderr
    wait_until("the first snapshot is there", lambda: has_snapshot(shipped))
    assert shipped.terminate() == 0
    before = shipped.db_path.read_bytes()
    refused = shipped.ctl("restore", "--yes", "--at", "2020-01-01T00:00:00Z")
    assert refused.returncode == 1
    assert "its oldest is of" in refused.stderr
    refused = shipped.ctl("restore", "--yes", "--at", "2026-01-01T00:00:00")
    assert refused.returncode == 64
    assert "time zone" in refused.stderr
    for path in archive_files(shipped, "snapshots"):
        (path / "pylon.db").write_bytes((path / "pylon.db").read_bytes()[:-4096])
    refused = shipped.ctl("restore", "--yes")
    assert refused.returncode == 1
    assert "bytes, MANIFEST.json says" in refused.stderr
    assert shipped.db_path.read_bytes() == before


def test_server_ships_to_a_bucket_and_is_restored_from_it(
    make_server: Callable[..., PylonServer],
) -> None:
    bucket_server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    bucket_server.start()
    host, port = bucket_server.get_host_and_port()
    endpoint = f"http://{host}:{port}"
    access = {"aws_access_key_id": "test", "aws_secret_access_key": "test"}
    client = boto3.client("s3", endpoint_url=endpoint, region_name="us-east-1", **access)
    client.create_bucket(Bucket="backups")
    server = make_server(
        PYLON_BACKUP_URL="s3://backups/app", PYLON_BACKUP_INTERVAL_S="1", AWS_REGION="us-east-1",
        AWS_ENDPOINT_URL=endpoint, **{name.upper(): value for name, value in access.items()},
    ).start()
    try:
        for n in range(5):
            insert(server, n)

        def keys() -> list[str]:
            listed = client.list_objects_v2(Bucket="backups", Prefix="app/")
            return [each["Key"] for each in listed.get("Contents", [])]

        wait_until("a snapshot is in the bucket",
                   lambda: any(key.endswith("/MANIFEST.json") for key in keys()))
        for n in range(5, 9):
            insert(server, n)
        assert server.terminate() == 0  # the end uploads the rest
        for path in server.db_path.parent.glob("app.db*"):
            if path.is_file():
                path.unlink()
        assert restore(server)["seq"] == 9
        server.start()
        assert ns(server) == list(range(9))
    finally:
        server.close()
        bucket_server.stop()
