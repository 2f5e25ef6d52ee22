"""`pylonctl policy`: trees of verdicts, and the same verdict as the request gets."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from pylon.cli.main import cli
from pylon.errors import InvalidData, InvalidJson, NotFound, PylonError
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.test_policy_refusals import app


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiStage]:
    manifest = app()
    manifest["policies"][1]["allowRead"] = (
        "data.ownerId == auth.userId"
        " || exists(Member, roomId == data.roomId, userId == auth.userId)"
    )
    (tmp_path / "pylon.manifest.json").write_text(json.dumps(manifest, indent=1))
    with serve_api(tmp_path, manifest) as server:
        yield server


def run(folder: Path, *args: str) -> Result:
    environ = {
        "PYLON_MANIFEST": str(folder / "pylon.manifest.json"),
        "PYLON_DB_PATH": str(folder / "test.db"),
    }
    return CliRunner().invoke(cli, ["policy", *args], env=environ)


def found(folder: Path, *args: str) -> Any:
    answer = run(folder, *args, "--json")
    assert answer.exit_code in (0, 1), answer.output
    if answer.exception is not None and not isinstance(answer.exception, SystemExit):
        raise answer.exception
    return json.loads(answer.stdout)


def test_an_expression_is_printed_with_the_value_of_each_part(tmp_path: Path) -> None:
    auth = '{"userId": "u1", "roles": ["editor"]}'
    answer = run(tmp_path, "test", "data.ownerId == auth.userId && data.open", "--auth", auth,
                 "--row", '{"ownerId": "u7", "open": true}')
    assert answer.exit_code == 1
    assert answer.stdout.splitlines() == [
        "false",
        "no   data.ownerId == auth.userId && data.open",
        "no     data.ownerId == auth.userId",
        '         data.ownerId = "u7"',
        '         auth.userId = "u1"',
        "       data.open = true",
        'because data.ownerId == auth.userId is false: data.ownerId is "u7", auth.userId is "u1"',
    ]
    answer = run(tmp_path, "test", "auth.hasRole('editor') && existing.n < data.n",
                 "--auth", auth, "--row", '{"n": 2}', "--existing", '{"n": 1}')
    assert (answer.exit_code, answer.stdout.splitlines()[0]) == (0, "true")


def test_faults_of_the_command_line_are_named(tmp_path: Path, api: ApiStage) -> None:
    def error(*args: str) -> PylonError:
        answer = run(tmp_path, *args)
        assert isinstance(answer.exception, PylonError), answer.output
        return answer.exception

    assert "character 6" in error("test", "data.x == 1").message
    assert isinstance(error("test", "true", "--row", "["), InvalidJson)
    assert '"userid"' in error("test", "true", "--auth", '{"userid": "x"}').message
    assert isinstance(error("test", "true", "--auth", '{"roles": "x"}'), InvalidData)
    rule = "exists(Member, roomId == '7', userId == auth.userId)"
    assert error("test", rule, "--entity", "Note").hint == "add --stored to read them"
    assert isinstance(error("explain", "--entity", "Note", "--id", "none"), NotFound)
    assert "known entities: Member, Note" in error("explain", "--entity", "Nte").message
    assert "is no action of --room" in error("explain", "--room", "a", "--action", "read").message


def test_the_verdict_on_a_stored_row_is_that_of_the_request(
    tmp_path: Path, api: ApiStage
) -> None:
    note = {"ownerId": "bob", "roomId": "7"}
    made = api.call("POST", "/api/entities/Note", note, ADMIN_TOKEN).json["id"]
    member = {"roomId": "7", "userId": "ann"}
    api.call("POST", "/api/entities/Member", member, ADMIN_TOKEN)
    statuses = set()
    for user in ("ann", "bob", "eve"):
        token = api.user(user)
        for action, method, target, body in (
            ("read", "GET", f"/api/entities/Note/{made}", None),
            ("update", "PATCH", f"/api/entities/Note/{made}", {"roomId": "7"}),
            ("delete", "DELETE", f"/api/entities/Note/{made}", None),
            ("insert", "POST", "/api/entities/Note", note),
        ):
            args = ["explain", "--as", user, "--entity", "Note", "--action", action]
            args += ["--row", json.dumps(body or {})]
            args += [] if action == "insert" else ["--id", made]
            explained = found(tmp_path, *args)
            answer = api.call(method, target, body, token)
            assert explained["allowed"] is (answer.status_code < 300), (user, action, answer.text)
            holds = [rule["holds"] for rule in explained["rules"]]
            assert holds and all(holds) is explained["allowed"]
            assert ("NOT_FOUND" in explained["note"]) is (answer.status_code == 404)
            statuses.add(answer.status_code)
    assert statuses == {200, 201, 403, 404}
    admin = found(tmp_path, "explain", "--auth", '{"isAdmin": true}', "--entity", "Note",
                  "--id", made)
    assert (admin["allowed"], admin["note"]) == (True, "an admin passes all policies")
    text = run(tmp_path, "explain", "--as", "eve", "--entity", "Note", "--id", made).stdout
    first, second = text.splitlines()[:2]
    assert first.startswith(f"read of Note/{made}: denied (the caller may not read the row")
    place = f"{tmp_path / 'pylon.manifest.json'}:"
    assert second.startswith(f'policy "notes" ({place}') and second.endswith("allowRead: denies")
    assert 'because data.ownerId == auth.userId is false: data.ownerId is "bob"' in text


def test_rooms_and_stored_rows_of_a_test(tmp_path: Path, api: ApiStage) -> None:
    member = {"roomId": "7", "userId": "ann", "role": "host"}
    api.call("POST", "/api/entities/Member", member, ADMIN_TOKEN)
    for user, room, action, expected in (
        ("ann", "room:7", "join", True), ("ann", "room:7", "broadcast", True),
        ("ann", "room:8", "join", False), ("eve", "room:7", "presence", False),
        ("ann", "lobby", "join", False),
    ):
        explained = found(tmp_path, "explain", "--as", user, "--room", room, "--action", action)
        assert explained["allowed"] is expected
    assert explained["note"] == "no policy has a rule of join, so only admins may"
    rule = "exists(Member, roomId == data.roomId, userId == auth.userId)"
    tested = found(tmp_path, "test", rule, "--entity", "Note", "--stored", "--auth",
                   '{"userId": "ann"}', "--row", '{"roomId": "7"}')
    assert tested["holds"] is True
