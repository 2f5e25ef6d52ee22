"""The secret key: where it comes from, and the starts that are refused for it."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import stat
from pathlib import Path

import pytest

from pylon.auth.keys import Keys
from pylon.auth.secret_key import key_file_of, read_keys, settle_keys, write_key_file
from pylon.clock import SeededRandom, SystemClock
from pylon.config import Config, load
from pylon.data_dir import KEY_FILE
from pylon.errors import SettingsRefused, StartRefused
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.setting_checks import unsafe_settings
from pylon.startup import find_problems
from pylon.storage.backend import Backend
from pylon.storage.factory import open_store
from tests.support import stores
from tests.support.manifests import notes_app
from tests.support.server import PylonServer

OLD, NEW = (hashlib.sha256(name).digest() for name in (b"old", b"new"))
URL = "postgres://db/app"
MANIFEST = parse_manifest(json.dumps(notes_app()), "pylon.manifest.json")


def config_of(**env: str) -> Config:
    return load({"PYLON_CORS_ORIGIN": "https://app.example.com", **env}).config


@pytest.mark.parametrize("text", [
    OLD.hex(), OLD.hex().upper(), base64.b64encode(OLD).decode(),
    base64.urlsafe_b64encode(OLD).decode(), base64.urlsafe_b64encode(OLD).decode().rstrip("="),
], ids=("hex", "upper", "base64", "base64url", "bare"))
def test_a_key_is_written_in_hex_or_base64(text: str, tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"# made today\n\n{text}\r\n")
    for config in (config_of(PYLON_SECRET_KEY=text), config_of(PYLON_SECRET_KEY_FILE=str(path))):
        keys = read_keys(config)
        assert keys is not None
        assert keys.kids == Keys([OLD]).kids


@pytest.mark.parametrize("text", ["short", "x" * 64, OLD.hex()[:-2], OLD.hex() + "00", "00" * 32])
def test_another_text_is_refused_and_not_shown(text: str, tmp_path: Path) -> None:
    with pytest.raises(SettingsRefused) as caught:
        config_of(PYLON_SECRET_KEY=text)
    assert "openssl rand -hex 32" in str(caught.value)
    assert text not in str(caught.value)
    path = tmp_path / "key"
    path.write_text(text)
    with pytest.raises(StartRefused) as refused:
        read_keys(config_of(PYLON_SECRET_KEY_FILE=str(path)))
    assert str(path) in str(refused.value)
    assert text not in str(refused.value)


def test_the_config_shows_no_key() -> None:
    shown = repr(config_of(PYLON_SECRET_KEY=NEW.hex(), PYLON_SECRET_KEY_PREVIOUS=OLD.hex()))
    assert repr(NEW) not in shown
    assert repr(OLD) not in shown


def test_several_lines_are_the_key_and_those_before(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"{NEW.hex()}\n{OLD.hex()}\n")
    keys = read_keys(config_of(PYLON_SECRET_KEY_FILE=str(path)))
    assert keys is not None
    assert keys.kids == Keys([NEW, OLD]).kids
    path.write_text("\n" * 3)
    with pytest.raises(StartRefused, match="0 lines"):
        read_keys(config_of(PYLON_SECRET_KEY_FILE=str(path)))
    with pytest.raises(StartRefused, match="cannot be read: No such file"):
        read_keys(config_of(PYLON_SECRET_KEY_FILE=str(tmp_path / "none")))


@pytest.mark.parametrize(("env", "words"), [
    ({"DATABASE_URL": URL}, "openssl rand -hex 32"),
    ({"DATABASE_URL": URL, "PYLON_DEV_MODE": "1"}, "openssl rand -hex 32"),
    ({"PYLON_SECRET_KEY": OLD.hex(), "PYLON_SECRET_KEY_FILE": "k"}, "unset one of them"),
    ({"PYLON_SECRET_KEY_PREVIOUS": OLD.hex()}, "without PYLON_SECRET_KEY"),
])
def test_settings_that_do_not_go_together_are_refused(env: dict[str, str], words: str) -> None:
    found = [text for text in unsafe_settings(config_of(**env)) if "SECRET_KEY" in text]
    assert len(found) == 1
    assert words in found[0]


def test_the_file_lies_beside_the_database_and_is_not_written_over(tmp_path: Path) -> None:
    config = config_of(PYLON_DB_PATH=str(tmp_path / "app.db"))
    path = key_file_of(config)
    assert path == tmp_path / KEY_FILE
    assert read_keys(config) is None
    before = os.umask(0)
    try:
        write_key_file(path, OLD.hex(), SeededRandom(1))
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    with pytest.raises(FileExistsError):
        write_key_file(path, NEW.hex(), SeededRandom(2))
    keys = read_keys(config)
    assert keys is not None
    assert keys.kids == Keys([OLD]).kids
    assert [found.name for found in tmp_path.iterdir()] == [KEY_FILE]
    path.unlink()
    path.symlink_to("/etc/hostname")
    with pytest.raises(StartRefused, match="symlink"):
        read_keys(config)


@pytest.mark.stores
def test_a_database_knows_its_key_again(tmp_path: Path) -> None:
    settings = stores.settings_at(tmp_path / "app.db")

    def settle(**env: str) -> tuple[Keys, str | None]:
        config = config_of(**{**settings, **env})
        return settle_keys(config, open_store(config), SeededRandom(7))

    opened: Backend = open_store(config_of(**settings))
    assert opened.key_probe() is None
    opened.open_writer(MANIFEST, compile_rules(MANIFEST), SystemClock()).close()
    keys, text = settle(PYLON_SECRET_KEY=OLD.hex())
    assert text is None
    assert opened.key_probe() == keys.probe()
    with pytest.raises(StartRefused, match=Keys([NEW]).kids[0]) as caught:
        settle(PYLON_SECRET_KEY=NEW.hex())
    assert "PYLON_SECRET_KEY_PREVIOUS" in (caught.value.hint or "")
    settle(PYLON_SECRET_KEY=NEW.hex(), PYLON_SECRET_KEY_PREVIOUS=OLD.hex())
    assert opened.key_probe() == Keys([NEW]).probe()
    settle(PYLON_SECRET_KEY=NEW.hex())
    with pytest.raises(StartRefused, match="not the secret key"):
        settle(PYLON_SECRET_KEY=OLD.hex())
    # Another node was faster: what the database has then counts.
    assert opened.put_key_probe("v1.mine.x", "v1.before.x") == Keys([NEW]).probe()


def test_check_config_finds_a_foreign_key(tmp_path: Path) -> None:
    config = config_of(PYLON_DB_PATH=str(tmp_path / "app.db"))
    made = open_store(config)
    made.open_writer(MANIFEST, compile_rules(MANIFEST), SystemClock()).close()
    made.put_key_probe(Keys([OLD]).probe(), None)
    loaded = load({
        "PYLON_CORS_ORIGIN": "https://app.example.com", "PYLON_DB_PATH": config.db_path,
        "PYLON_SECRET_KEY": NEW.hex(),
    })
    found = [problem.message for problem in find_problems(loaded, {}, MANIFEST)]
    assert len(found) == 1
    assert "not the secret key of this database" in found[0]


@pytest.mark.usefixtures("processes")
def test_starts_make_keep_and_demand_the_key_file(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app())
    path = server.db_path.parent / KEY_FILE
    server.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = path.read_text().strip()
    assert server.terminate() == 0
    assert text not in server.log()
    assert server.start().terminate() == 0
    assert path.read_text().strip() == text
    path.unlink()
    done = server.ctl("start")
    assert done.returncode == 78
    assert f"{path} is missing" in done.stderr + done.stdout
    assert not path.exists()
    server.env["PYLON_SECRET_KEY"] = NEW.hex()
    assert server.ctl("start").returncode == 78
    server.env["PYLON_SECRET_KEY_PREVIOUS"] = text
    assert server.start().terminate() == 0
    del server.env["PYLON_SECRET_KEY_PREVIOUS"]
    assert server.start().terminate() == 0


@pytest.mark.usefixtures("processes")
def test_a_server_in_memory_leaves_no_key(tmp_path: Path) -> None:
    server = PylonServer(tmp_path, notes_app(), {"PYLON_IN_MEMORY": "1"}).start()
    assert server.terminate() == 0
    assert list(tmp_path.rglob(f"*{KEY_FILE}*")) == []
