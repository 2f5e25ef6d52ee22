"""B6: no other user of the machine, and no client, reads files that are not for them."""

from __future__ import annotations

import os
import shutil
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.support.manifests import notes_app
from tests.support.server import ADMIN_TOKEN, PylonServer
from tests.support.wait import WAIT_S, wait_until

pytestmark = pytest.mark.usefixtures("processes")


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    """A login shell's."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, int]:
    """Permissions of all files and folders, the folder itself as `.`."""
    return {
        str(path.relative_to(folder)): stat.S_IMODE(path.lstat().st_mode)
        for path in (folder, *folder.rglob("*")) if not path.is_symlink()
    }


def open_to_others(folder: Path) -> dict[str, str]:
    return {name: oct(mode) for name, mode in modes(folder).items() if mode & 0o077}


def test_all_files_of_a_server_are_for_its_user_only(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app(), {"PYLON_RUNTIME_DIR": str(tmp_path / "run")})
    server.start()
    try:
        row = {"title": "secret", "ownerId": "ada", "shared": False}
        assert server.request("POST", "/api/entities/Note", row, token=ADMIN_TOKEN)[0] == 201
        assert {"app.db", "app.db-wal", "app.db-shm", "app.db.pid"} <= modes(
            server.db_path.parent).keys()
        assert open_to_others(server.db_path.parent) == {}
        run = {k: v for k, v in open_to_others(tmp_path / "run").items() if k == "."}
        assert run == {}, "the folder of the sockets"
        assert server.ctl("backup", str(tmp_path / "new" / "bundle")).returncode == 0
        assert open_to_others(tmp_path / "new") == {}
        assert server.ctl("export", "--out", str(tmp_path / "rows.jsonl")).returncode == 0
        assert stat.S_IMODE((tmp_path / "rows.jsonl").stat().st_mode) == 0o600
    finally:
        server.close()
    shutil.rmtree(server.db_path.parent)
    assert server.ctl("restore", "--yes", str(tmp_path / "new" / "bundle")).returncode == 0
    assert open_to_others(server.db_path.parent) == {}


def test_all_files_of_a_detached_server_are_for_its_user_only(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app(), {"PYLON_DB_PATH": str(tmp_path / "d/e/app.db")})
    done = server.ctl("start", "--detach")
    try:
        assert done.returncode == 0, done.stderr
        assert "app.db.log" in modes(tmp_path / "d" / "e")
        assert open_to_others(tmp_path / "d") == {}
    finally:
        assert server.ctl("stop").returncode == 0


def test_all_files_of_a_dev_server_are_for_its_user_only(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app())
    env = {k: v for k, v in server.full_env().items() if k not in ("PYLON_DEV_MODE",)}
    process = subprocess.Popen(
        [sys.executable, "-m", "pylon.cli.main", "dev"], cwd=tmp_path, env=env,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )
    try:
        wait_until("the database", lambda: server.db_path.with_name("app.db-shm").exists())
        assert open_to_others(server.db_path.parent) == {}
    finally:
        process.terminate()
        process.wait(WAIT_S)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that every user may enter; those of pytest are for one user."""
    folder = Path(tempfile.mkdtemp(prefix="pylon-b6-", dir="/tmp"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


def test_a_database_that_others_read_is_warned_of_with_the_remedy(open_folder: Path) -> None:
    server = PylonServer(open_folder, notes_app())
    data_dir = server.db_path.parent
    data_dir.mkdir()
    server.db_path.touch(0o644)
    done = server.ctl("check-config")
    assert done.returncode == 0, done.stderr
    assert f"chmod 600 {server.db_path}" in done.stderr
    assert f"chmod 700 {data_dir}" in done.stderr
    server.db_path.chmod(0o600)
    assert "chmod 600" not in server.ctl("check-config").stderr
    data_dir.chmod(0o700)
    assert "chmod" not in server.ctl("check-config").stderr


def test_a_folder_that_everybody_may_write_to_is_refused(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app())
    server.db_path.parent.mkdir()
    server.db_path.parent.chmod(0o777)
    for verb in (("start",), ("start", "--detach"), ("check-config",)):
        done = server.ctl(*verb)
        assert done.returncode == 78, done.stderr
        assert f"chmod 700 {server.db_path.parent}" in done.stderr
    assert not server.db_path.exists()


@pytest.mark.parametrize("kind", ["symlink", "fifo"])
def test_the_pidfile_and_the_log_are_never_somebody_elses_file(tmp_path: Path, kind: str) -> None:
    server = PylonServer(tmp_path, notes_app())
    server.db_path.parent.mkdir()
    victim = tmp_path / "victim"
    victim.write_text("precious")
    for suffix, verbs in ((".pid", [("start",), ("check-config",), ("status",)]),
                          (".log", [("start", "--detach")])):
        path = server.db_path.with_name("app.db" + suffix)
        if kind == "symlink":
            path.symlink_to(victim)
        else:
            os.mkfifo(path)
        for verb in verbs:
            done = server.ctl(*verb, timeout_s=20)
            assert done.returncode == 78, (verb, done.stderr)
            assert str(path) in done.stderr and "remove it" in done.stderr
        path.unlink()
    assert victim.read_text() == "precious"


def test_a_static_folder_with_the_database_in_it_is_refused(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app(), {"PYLON_STATIC_DIR": str(tmp_path)})
    done = server.ctl("check-config")
    assert done.returncode == 78
    assert "PYLON_STATIC_DIR" in done.stderr and "PYLON_DB_PATH" in done.stderr
    (tmp_path / "www").symlink_to(tmp_path)
    server.env["PYLON_STATIC_DIR"] = "www"
    assert server.ctl("start").returncode == 78


def test_a_manifest_in_the_static_folder_is_warned_of(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    server = PylonServer(tmp_path, notes_app(), {"PYLON_STATIC_DIR": str(public)})
    shutil.copy(server.manifest_path, public / "m.json")
    server.env["PYLON_MANIFEST"] = str(public / "m.json")
    assert "everybody can read it under /app/" in server.ctl("check-config").stderr


def test_static_files_end_at_the_folders_edge(
    make_server: Callable[..., PylonServer], tmp_path: Path
) -> None:
    secret = tmp_path / "secret.txt"
    secret.write_text("the secret")
    release = tmp_path / "release"
    (release / "assets").mkdir(parents=True)
    (release / "index.html").write_text("the index")
    (release / "assets" / "a.js").write_text("code")
    (release / ".env").write_text("the secret")
    (release / ".git").mkdir()
    (release / ".git" / "config").write_text("the secret")
    (release / "out.txt").symlink_to(secret)
    (release / "outside").symlink_to(tmp_path)
    (release / "device").symlink_to("/dev/zero")
    (release / "loop").symlink_to("loop")
    (release / "inside.js").symlink_to("assets/a.js")
    os.mkfifo(release / "fifo")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(release / "socket"))
    (tmp_path / "www").symlink_to(release)  # as a deployment switches releases

    server = make_server(PYLON_STATIC_DIR=str(tmp_path / "www"), PYLON_HTTP_WORKERS="1").start()
    for path in ("assets/a.js", "inside.js"):
        assert server.request("GET", f"/app/{path}")[:2] == (200, "code")
    for path in ("", "some/page", "assets", "loop"):
        assert server.request("GET", f"/app/{path}")[:2] == (200, "the index"), path
    for path in (
        ".env", ".git/config", ".git/", "%2eenv", "%2Egit/config", "%2e%65nv", "assets/../.env",
        "assets/%2e%2e/.env", "assets/..%2f.env", "assets/..%5c.env", "..%2fsecret.txt",
        "../secret.txt", "%2e%2e/secret.txt", "//.env", "/.env", "%2f.env", ".env%00.js", ".env/",
        "%c0%aeenv", "%25%32%65env/../.env", "out.txt", "outside/secret.txt", "outside/", "device",
        "fifo", "socket", "./.env", ".well-known/x", "...", "a\x00b".replace("\x00", "%00"),
    ):
        status, body, _ = server.request("GET", f"/app/{path}", timeout_s=5)
        assert (status, "secret" in str(body)) == (404, False), (path, status, body)
    listener.close()


def test_the_shipped_units_keep_files_private() -> None:
    units = Path(__file__).parents[2] / "systemd"
    for name in ("pylon.service", "pylon-backup.service", "pylon-drill.service"):
        lines = (units / name).read_text().splitlines()
        assert "UMask=0077" in lines
        assert "StateDirectoryMode=0700" in lines
