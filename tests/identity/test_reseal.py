"""After a change of the secret key, what the key before has sealed is sealed anew."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pylon.auth import sealed_values
from pylon.auth.keys import Keys
from pylon.auth.secret_key import read_key_file, rotate_key_file, write_key_file
from pylon.clock import SystemRandom
from pylon.errors import StartRefused
from pylon.storage.auth_ops import PutRecord
from tests.support.api import ApiStage
from tests.support.authenticator import Authenticator
from tests.support.cli import decode_output
from tests.support.manifests import sign_in_app
from tests.support.server import PylonServer
from tests.support.wait import wait_until
from workers.identity.seal_jobs import reseal

pytestmark = pytest.mark.stores
OLD, NEW = bytes(range(32)), bytes(range(1, 33))


def fill(stage: ApiStage, keys: Keys, count: int) -> None:
    """Store sealed values of users, two of them for each user."""
    for number in range(count):
        user = f"user{number:04d}"
        stage.writer.submit(PutRecord("totp", {
            "user_id": user, "sealed": keys.seal("totp", "sealed", user, user.encode()),
            "created_at": 1, "confirmed_at": 1,
        }))
        for provider in ("google", "github"):
            sealed = keys.seal("oauth_tokens", "sealed", user, provider.encode())
            stage.writer.submit(PutRecord("oauth_tokens", {
                "provider": provider, "user_id": user, "sealed": sealed,
            }))


def test_all_values_of_the_key_before_are_sealed_anew(
    stage: ApiStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealed_values, "_ROWS", 7)  # several pages, cut within a user
    fill(stage, Keys([OLD]), 20)
    object.__setattr__(stage.identity, "keys", Keys([NEW, OLD]))
    assert reseal(stage.identity) == 60
    assert reseal(stage.identity) == 0
    alone = Keys([NEW])
    store = stage.identity.store
    for record in store.point(lambda reader: reader.records("oauth_tokens", [])):
        value = alone.open("oauth_tokens", "sealed", record["user_id"], record["sealed"])
        assert value.decode() == record["provider"]
    for record in store.point(lambda reader: reader.records("totp", [])):
        user = str(record["user_id"])
        assert alone.open("totp", "sealed", user, record["sealed"]).decode() == user


def test_a_value_that_no_key_opens_stays_and_stops_no_other(stage: ApiStage) -> None:
    fill(stage, Keys([OLD]), 2)
    stage.writer.submit(PutRecord("totp", {
        "user_id": "lost", "created_at": 1,
        "sealed": Keys([bytes(32)]).seal("totp", "sealed", "lost", b"x"),
    }))
    object.__setattr__(stage.identity, "keys", Keys([NEW, OLD]))
    assert reseal(stage.identity) == 6
    assert reseal(stage.identity) == 0


def test_a_key_file_gets_a_new_first_key_and_has_four_at_most(tmp_path: Path) -> None:
    path = tmp_path / "secret.key"
    write_key_file(path, OLD.hex(), SystemRandom())
    kids = rotate_key_file(path, SystemRandom(), is_own=True)
    assert kids[1:] == Keys([OLD]).kids
    assert Keys(read_key_file(path, is_own=True)).kids == kids
    assert path.stat().st_mode & 0o777 == 0o600 and list(tmp_path.iterdir()) == [path]
    for _ in range(2):
        rotate_key_file(path, SystemRandom(), is_own=True)
    before = path.read_text()
    with pytest.raises(StartRefused, match="4 keys"):
        rotate_key_file(path, SystemRandom(), is_own=True)
    assert path.read_text() == before


@pytest.mark.sqlite
def test_an_operator_changes_the_key_of_a_server(
    make_server: Callable[..., PylonServer],
) -> None:
    """The file is made at the first start; on PostgreSQL the key is a setting."""
    server = make_server(sign_in_app(), PYLON_AUTH_RATES="false").start()
    ada = {"email": "ada@example.com", "password": "four random words here"}
    token = server.request("POST", "/api/auth/password/register", ada)[1]["token"]
    enrolled = server.request("POST", "/api/auth/totp/enroll", {}, token=token)[1]
    app = Authenticator(enrolled["secret"])
    refused = server.ctl("secret", "rotate")
    assert refused.returncode != 0 and "stop it first" in refused.stderr
    code = {"code": app.code(time.time())}
    assert server.request("POST", "/api/auth/totp/verify", code, token=token)[0] == 200
    [key] = decode_output(server.ctl("secret", "status", "--json"))["keys"]
    assert key["values"] == 1
    assert server.terminate() == 0
    rotated = decode_output(server.ctl("secret", "rotate", "--json"))
    assert rotated["before"] == key["kid"] != rotated["kid"]
    server.start()

    def status() -> subprocess.CompletedProcess[str]:
        return server.ctl("secret", "status", "--json")

    wait_until("the value is sealed anew", lambda: [
        each["values"] for each in decode_output(status())["keys"]
    ] == [1, 0])
    assert "No value needs the earlier keys" in server.ctl("secret", "status").stdout
    assert server.terminate() == 0
    file = server.folder / "data" / "secret.key"
    file.write_text(file.read_text().splitlines()[0] + "\n")
    server.start()
    asked = server.request("POST", "/api/auth/password/login", ada)[1]["error"]
    answer = {"challenge": asked["challenge"], "code": app.code(time.time(), drift=1)}
    assert server.request("POST", "/api/auth/totp/challenge", answer)[0] == 200


@pytest.mark.sqlite
def test_a_key_of_the_environment_is_the_operators(ctl: Callable[..., object]) -> None:
    done = ctl("secret", "rotate", PYLON_SECRET_KEY=OLD.hex())
    assert isinstance(done, subprocess.CompletedProcess)
    assert done.returncode != 0 and "PYLON_SECRET_KEY_PREVIOUS" in done.stderr
    assert OLD.hex() not in done.stderr + done.stdout
