"""Encrypted bundles: only the passphrase or the recipient opens one, and nothing stays in clear."""

from __future__ import annotations

import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyrage
import pytest

from pylon.cli.main import main
from pylon.clock import SystemClock
from pylon.data_dir import KEY_FILE
from pylon.errors import BackupInvalid, BackupRefused
from pylon.manifest_loader import parse_manifest
from pylon.policy.rules import compile_rules
from pylon.storage.backups import BackupReport
from pylon.storage.bundle import encrypted
from pylon.storage.bundle.encrypted import (
    Decryption,
    Encryption,
    create_encrypted,
    make_workspace,
    open_encrypted,
)
from pylon.storage.factory import open_store_at
from tests.support.cli import Ctl, decode_output

PASSPHRASE = "a passphrase of a test"
FILES = {
    "pylon.db": b"row" * 100_000, "manifest.json": b"{}", "VERSION": b"",
    "MANIFEST.json": b"x" * 512,
}


def write_files(folder: Path) -> BackupReport:
    folder.mkdir()
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return BackupReport(str(folder), True, 7, "l", "s", "0", "now", 1, 0.1)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data"
    path.mkdir()
    return path


def make(data: Path, target: Path, encryption: Encryption) -> BackupReport:
    with make_workspace(data) as plain:
        return create_encrypted(target, encryption, plain, write_files)


def opened(source: Path, decryption: Decryption, data: Path) -> dict[str, bytes]:
    with make_workspace(data) as plain:
        open_encrypted(source, decryption, plain)
        return {path.name: path.read_bytes() for path in plain.iterdir()}


def test_the_passphrase_opens_a_bundle_and_no_file_stays_in_clear(
    data: Path, tmp_path: Path
) -> None:
    target = tmp_path / "bundle"
    report = make(data, target, Encryption(PASSPHRASE))
    assert (report.target, report.encrypted, report.seq) == (str(target), True, 7)
    assert sorted(path.name for path in target.iterdir()) == ["bundle.tar.age", "key.age"]
    assert report.size_bytes == sum(path.stat().st_size for path in target.iterdir())
    assert all(path.stat().st_mode & 0o077 == 0 for path in (target, *target.iterdir()))
    assert b"rowrow" not in (target / "bundle.tar.age").read_bytes()
    assert opened(target, Decryption(PASSPHRASE), data) == FILES
    assert list(data.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "data"]


def test_each_recipient_opens_a_bundle_and_nobody_else(data: Path, tmp_path: Path) -> None:
    one, two, other = (pyrage.x25519.Identity.generate() for _ in range(3))
    target = tmp_path / "bundle"
    make(data, target, Encryption(recipients=(str(one.to_public()), str(two.to_public()))))
    assert [path.name for path in target.iterdir()] == ["bundle.tar.age"]
    for identity in (one, two):
        assert opened(target, Decryption(identities=(str(identity),)), data) == FILES
    with pytest.raises(BackupInvalid, match="cannot be decrypted"):
        opened(target, Decryption(identities=(str(other),)), data)
    with pytest.raises(BackupRefused, match="--identity"):
        opened(target, Decryption(PASSPHRASE), data)


def cut(content: bytes) -> bytes:
    return content[:-100]


def flip(content: bytes) -> bytes:
    return content[:5_000] + bytes([content[5_000] ^ 1]) + content[5_001:]


@pytest.mark.parametrize("change", [cut, flip, lambda content: content + b"x"])
def test_a_changed_bundle_does_not_open(
    change: Callable[[bytes], bytes], data: Path, tmp_path: Path
) -> None:
    identity = pyrage.x25519.Identity.generate()
    target = tmp_path / "bundle"
    make(data, target, Encryption(recipients=(str(identity.to_public()),)))
    path = target / "bundle.tar.age"
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(BackupInvalid):
        opened(target, Decryption(identities=(str(identity),)), data)
    assert list(data.iterdir()) == []


def test_a_wrong_passphrase_is_named_without_its_text(data: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle"
    make(data, target, Encryption(PASSPHRASE))
    with pytest.raises(BackupInvalid, match="does not open") as caught:
        opened(target, Decryption("another passphrase"), data)
    assert "another" not in str(caught.value)
    assert PASSPHRASE not in repr(Encryption(PASSPHRASE)) + repr(Decryption(PASSPHRASE))


def test_an_archive_of_somebody_else_leaves_its_folder_in_no_way(
    data: Path, tmp_path: Path
) -> None:
    """Everybody who knows a recipient's public key can encrypt any archive for it."""
    identity = pyrage.x25519.Identity.generate()
    for name in ("../evil", "/evil", "..", "a/b"):
        info = tarfile.TarInfo(name)
        target = tmp_path / "bundle"
        target.mkdir(exist_ok=True)
        (target / "bundle.tar.age").write_bytes(pyrage.encrypt(
            info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), [identity.to_public()]
        ))
        with pytest.raises(BackupInvalid, match="no file of a bundle"):
            opened(target, Decryption(identities=(str(identity),)), data)
    assert not (data / "evil").exists()


@pytest.mark.parametrize(("encryption", "words"), [
    (Encryption("short"), "at least 12"), (Encryption(recipients=("age1x",)), "no age recipient"),
    (Encryption(recipients=(str(pyrage.x25519.Identity.generate()),)), "secret key"),
])
def test_what_nobody_should_use_is_refused(
    encryption: Encryption, words: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(BackupRefused, match=words) as caught:
        make(data, tmp_path / "bundle", encryption)
    assert "AGE-SECRET-KEY-1" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()


def test_an_error_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Path) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(encrypted, "sync_path", fail)
    recipient = str(pyrage.x25519.Identity.generate().to_public())
    with pytest.raises(OSError, match="No space"):
        make(data, tmp_path / "bundle", Encryption(recipients=(recipient,)))
    assert [path.name for path in tmp_path.iterdir()] == ["data"]
    assert list(data.iterdir()) == []


def test_the_next_backup_removes_what_a_killed_one_has_left_in_clear(data: Path) -> None:
    dead = data / "pylon-bundle-abcd1234"
    for folder in ("bundle", "bundle.tmp-00ff00ff"):
        (dead / folder).mkdir(parents=True)
        (dead / folder / "pylon.db").write_bytes(b"rows")
    (dead / "lock").touch()
    with make_workspace(data) as plain:
        assert not dead.exists()
        assert plain.parent.parent == data
    assert list(data.iterdir()) == []


# --- by pylonctl ------------------------------------------------------------------------


def make_database(folder: Path) -> None:
    (folder / ".pylon").mkdir()
    store = open_store_at(folder / ".pylon" / "dev.db")
    manifest = parse_manifest((folder / "pylon.manifest.json").read_text(), "pylon.manifest.json")
    store.open_writer(manifest, compile_rules(manifest), SystemClock()).close()


@pytest.mark.usefixtures("processes")
def test_pylonctl_encrypts_verifies_and_restores(ctl: Ctl, tmp_path: Path) -> None:
    key = hashlib.sha256(b"key").hexdigest()
    make_database(tmp_path)
    data = tmp_path / ".pylon"
    (data / KEY_FILE).write_text(key + "\n")
    phrase = tmp_path / "phrase"
    phrase.write_text(PASSPHRASE + "\n")
    made = decode_output(ctl("backup", "b", "--encrypt", "--passphrase-file", "phrase", "--json"))
    assert (made["encrypted"], made["secret_key"]) == (True, True)
    assert "passphrase-file" in ctl("backup", "verify", "b").stderr
    assert "sound" in ctl("backup", "verify", "b", "--passphrase-file", "phrase").stdout
    (data / KEY_FILE).write_text(hashlib.sha256(b"other").hexdigest())
    done = ctl("restore", "-y", "b", "--passphrase-file", "phrase", "--json")
    body = decode_output(done)
    assert body["secret_key"]
    assert (data / KEY_FILE).read_text() == key + "\n"
    assert (data / KEY_FILE).stat().st_mode & 0o777 == 0o600
    kept = [name for name in body["replaced"] if KEY_FILE in name]
    assert len(kept) == 1
    assert Path(kept[0]).read_text() == hashlib.sha256(b"other").hexdigest()
    assert [path for path in data.iterdir() if "bundle" in path.name] == []


@pytest.mark.usefixtures("processes")
def test_pylonctl_says_where_the_key_is_if_the_bundle_lacks_it(ctl: Ctl, tmp_path: Path) -> None:
    make_database(tmp_path)
    key = hashlib.sha256(b"key").hexdigest()
    done = ctl("backup", "b", PYLON_SECRET_KEY=key)
    assert "does not have the secret key" in done.stderr
    assert "PYLON_SECRET_KEY" in done.stderr
    assert not (tmp_path / "b" / KEY_FILE).exists()


def test_no_option_takes_the_passphrase_itself(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for verb in ("backup", "restore"):
        with pytest.raises(SystemExit):
            main([verb, "--help"])
    shown = capsys.readouterr().out
    assert "--passphrase-file" in shown
    assert "--passphrase " not in shown
