"""A running server in dev mode names the line of the manifest, and says that rooms are open."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.support.manifests import notes_app, private_rooms_app
from tests.support.server import PylonServer

pytestmark = pytest.mark.stores


def test_a_refusal_names_the_file_and_line_of_its_rule(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server(notes_app(), PYLON_DEV_MODE="true")
    server.manifest_path.write_text(json.dumps(notes_app(), indent=4))
    server.start()
    token, user_id = server.guest()
    body = {"title": "t", "ownerId": "bob", "shared": False}
    status, answer = server.request("POST", "/api/entities/Note", body, token=token)[:2]
    assert status == 403
    error = answer["error"]
    assert error["failed"] == [
        f'auth.userId == data.ownerId is false: auth.userId is "{user_id}", data.ownerId is "bob"'
    ]
    file, _, line = error["place"].rpartition(":")
    assert file == str(server.manifest_path)
    assert '"allowInsert"' in server.manifest_path.read_text().splitlines()[int(line) - 1]
    assert int(line) > 50
    status, answer = server.request("GET", "/api/sync/pull?sinc=0", token=token)[:2]
    assert (status, answer["error"]["code"]) == (400, "UNKNOWN_PARAMETER")
    assert server.log().count('"rooms.open"') == 1


def test_a_server_with_policies_of_rooms_says_nothing(
    make_server: Callable[..., PylonServer]
) -> None:
    server = make_server(private_rooms_app()).start()
    assert "rooms.open" not in server.log()
