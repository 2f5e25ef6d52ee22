"""The env file of `pylonctl`: which one it reads, what wins over it, whose files root leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from pylon.cli import settings
from pylon.cli.settings import read_settings
from pylon.errors import StartRefused
from tests.support.cli import Ctl, make_ctl
from tests.support.manifests import field, notes_app
from tests.support.server import PylonServer

OTHER_USER = 65534


@pytest.fixture
def server_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of a server, in the place of /etc/pylon/pylon.env."""
    path = tmp_path / "etc" / "pylon.env"
    path.parent.mkdir()
    path.write_text("PYLON_PORT=7000\nPYLON_BIND=127.0.0.7\n")
    monkeypatch.setattr(settings, "SERVER_ENV_FILE", path)
    return path


def test_server_file_is_read_and_named_as_origin(server_file: Path) -> None:
    loaded = read_settings(environ={"PYLON_BIND": "127.0.0.1"}, flags={"PYLON_DB_PATH": "a.db"})
    assert (loaded.config.port, loaded.origin["PYLON_PORT"]) == (7000, str(server_file))
    assert (loaded.config.bind, loaded.origin["PYLON_BIND"]) == ("127.0.0.1", "environment")
    assert (loaded.config.db_path, loaded.origin["PYLON_DB_PATH"]) == ("a.db", "command line")
    assert loaded.origin["PYLON_LOG_FORMAT"] == "default"


def test_variable_names_the_file_in_place_of_the_server_file(
    server_file: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other.env"
    other.write_text("PYLON_PORT=7100\n")
    (tmp_path / ".env").write_text("PYLON_PORT=7200\n")
    environ = {"PYLON_ENV_FILE": str(other)}
    for dev in (False, True):  # a file that was named stands for the `.env` files too
        loaded = read_settings(environ=environ, dev=dev, folder=tmp_path)
        assert loaded.config.port == 7100
        assert [text for text in loaded.warnings if "PYLON_ENV_FILE" in text] == []
    assert server_file.is_file()


@pytest.mark.usefixtures("server_file")
def test_dev_reads_no_server_file_and_an_empty_variable_reads_none(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text("PYLON_PORT=7200\n")
    assert read_settings(environ={}, dev=True, folder=tmp_path).config.port == 7200
    for dev in (False, True):
        none = read_settings(environ={"PYLON_ENV_FILE": ""}, dev=dev, folder=tmp_path)
        assert none.config.port == 4321


def test_named_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StartRefused, match=r"none\.env cannot be read: No such file"):
        read_settings(environ={"PYLON_ENV_FILE": str(tmp_path / "none.env")})


def test_line_that_names_another_file_is_reported(server_file: Path) -> None:
    server_file.write_text("PYLON_ENV_FILE=/etc/other.env\n")
    (warning,) = [t for t in read_settings(environ={}).warnings if "PYLON_ENV_FILE" in t]
    assert warning.startswith(f"PYLON_ENV_FILE (from {server_file}) is not a setting")


@pytest.fixture
def ctl(processes: None, tmp_path: Path) -> Ctl:
    return make_ctl(tmp_path)


def test_flag_before_or_behind_the_verb_wins_over_the_variable(ctl: Ctl, tmp_path: Path) -> None:
    for name, level in (("a.env", "debug"), ("b.env", "error")):
        (tmp_path / name).write_text(f"PYLON_LOG_LEVEL={level}\n")
    for words in (["--env-file", "a.env", "config"], ["config", "--env-file", "a.env"]):
        done = ctl(*words, PYLON_ENV_FILE="b.env")
        (line,) = [x for x in done.stdout.splitlines() if x.startswith("PYLON_LOG_LEVEL=")]
        assert line.split() == ["PYLON_LOG_LEVEL=debug", "#", "a.env"]


def test_detached_server_and_other_verbs_read_the_same_file(ctl: Ctl, tmp_path: Path) -> None:
    (tmp_path / "app.env").write_text("PYLON_DB_PATH=data/app.db\nPYLON_LOG_LEVEL=debug\n")
    words = ["--env-file", "app.env"]
    assert ctl("start", "--detach", *words, PYLON_DB_PATH="data/app.db").returncode == 0
    try:
        found = ctl("status", "--json", *words, PYLON_DB_PATH="data/app.db")
        assert json.loads(found.stdout)["running"] is True
        assert '"level":"debug"' in (tmp_path / "data" / "app.db.log").read_text()
    finally:
        assert ctl("stop", *words, PYLON_DB_PATH="data/app.db").returncode == 0


def owners(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.lstat().st_uid for p in (folder, *folder.rglob("*"))}


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone makes files of other users")
def test_verbs_of_root_leave_no_file_that_the_servers_user_cannot_open(
    make_server: Callable[..., PylonServer], tmp_path: Path
) -> None:
    app = notes_app()
    (notes,) = [entity for entity in app["entities"] if entity["name"] == "Note"]
    notes["fields"].append(field("old", "string", optional=True))
    server = make_server(app)
    server.start()
    assert server.terminate() == 0
    server.manifest_path.write_text(json.dumps(notes_app()))
    data_dir = server.db_path.parent
    for path in (data_dir, *data_dir.rglob("*")):
        os.chown(path, OTHER_USER, OTHER_USER)
    bundle = tmp_path / "bundle"
    for words in (
        ("status",), ("check-config",), ("schema", "plan"), ("schema", "history"),
        ("schema", "apply", "--yes"), ("schema", "apply", "--yes", "--allow-destructive"),
        ("backup", str(bundle)), ("backup", "verify", str(bundle)),
        ("export", "--out", str(tmp_path / "rows.jsonl")), ("restore", "--yes", str(bundle)),
    ):
        server.ctl(*words)
        strangers = {n: uid for n, uid in owners(data_dir).items() if uid != OTHER_USER}
        assert strangers == {}, words
    # A change of the schema, with its own backup beside the database.
    done = server.ctl("schema", "apply", "--yes", "--allow-destructive", "--drop-field", "Note.old")
    assert done.returncode == 0, done.stderr
    assert [name for name in owners(data_dir) if ".before-" in name and name.endswith("/pylon.db")]
    assert set(owners(data_dir).values()) == {OTHER_USER}


@pytest.mark.skipif(os.geteuid() != 0, reason="root alone makes files of other users")
@pytest.mark.usefixtures("processes")
def test_start_by_root_on_the_data_of_another_user_is_refused(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app())
    server.db_path.parent.mkdir(mode=0o700)
    os.chown(server.db_path.parent, OTHER_USER, OTHER_USER)
    for words in (("start",), ("start", "--detach")):
        done = server.ctl(*words)
        assert done.returncode == 78, done.stderr
        assert f"--reuid={OTHER_USER}" in done.stderr
    assert list(server.db_path.parent.iterdir()) == []
