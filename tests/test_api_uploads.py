"""Uploads in several requests: init, PUT and confirm; and tus."""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from pylon import limits
from pylon.files.names import key_of
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import notes_app

pytestmark = pytest.mark.stores

DATA = b"0123456789" * 100
SETTINGS = {"PYLON_SECRET_KEY": bytes(range(32)).hex(), "PYLON_FILE_MAX_BYTES": "10000",
            "PYLON_FILE_RESUMABLE_MAX_BYTES": "20000", "PYLON_FILES_QUOTA_BYTES": "30000"}
TUS = {"Tus-Resumable": "1.0.0"}
PATCH = {**TUS, "Content-Type": "application/offset+octet-stream"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiStage]:
    settings = {**SETTINGS, "PYLON_FILES_DIR": str(tmp_path / "files")}
    with serve_api(tmp_path, notes_app(), settings) as stage:
        yield stage


def code(answer: falcon.testing.Result) -> str:
    found: str = answer.json["error"]["code"]
    return found


def on_disk(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").rglob("*") if path.is_file())


def init(api: ApiStage, token: str, **more: Any) -> Any:
    answer = api.call("POST", "/api/files/init", {"filename": "a.txt", **more}, token)
    assert answer.status_code == 200, answer.text
    return answer.json


def confirm(api: ApiStage, token: str, made: Any) -> falcon.testing.Result:
    return api.call("POST", "/api/files/confirm", {"assetId": made["assetId"]}, token)


def create(api: ApiStage, token: str, size: int = len(DATA), **headers: str) -> str:
    sent = {**TUS, "Upload-Length": str(size), **headers}
    answer = api.call("POST", "/api/files/tus", b"", token, sent)
    assert answer.status_code == 201, answer.text
    location: str = answer.headers["location"]
    return location


def patch(
    api: ApiStage, token: str, url: str, offset: int, data: bytes, **headers: str
) -> falcon.testing.Result:
    return api.call(
        "PATCH", url, data, token, {**PATCH, "Upload-Offset": str(offset), **headers}
    )


def offset(api: ApiStage, token: str, url: str) -> int:
    return int(api.call("HEAD", url, token=token, headers=TUS).headers["upload-offset"])


def test_three_requests_store_a_file_and_confirm_may_be_repeated(
    api: ApiStage, tmp_path: Path
) -> None:
    ann = api.user("ann")
    digest = hashlib.sha256(DATA).hexdigest()
    made = init(api, ann, contentType="text/csv", size=len(DATA), sha256=digest)
    assert made["cdnUrl"] == f"/api/files/{made['assetId']}"
    assert code(confirm(api, ann, made)) == "UPLOAD_INCOMPLETE"
    assert code(api.call("GET", made["cdnUrl"], token=ann)) == "FILE_NOT_FOUND"
    for data in (b"other", DATA):  # the last one counts
        assert api.call("PUT", made["uploadUrl"], data, ann).status_code == 204
    done = confirm(api, ann, made)
    assert done.status_code == 200 and done.json["sha256"] == digest
    assert done.json["type"] == "text/csv" and done.json["size"] == len(DATA)
    assert confirm(api, ann, made).json == done.json
    assert api.call("GET", made["cdnUrl"], token=ann).content == DATA
    assert code(api.call("PUT", made["uploadUrl"], b"late", ann)) == "UPLOAD_FINISHED"
    assert on_disk(tmp_path) == [key_of(made["assetId"])]


def test_what_a_client_declared_must_hold(api: ApiStage) -> None:
    ann = api.user("ann")
    made = init(api, ann, size=5)
    assert code(api.call("PUT", made["uploadUrl"], b"longer", ann)) == "PAYLOAD_TOO_LARGE"
    assert api.call("PUT", made["uploadUrl"], b"abc", ann).status_code == 204
    assert code(confirm(api, ann, made)) == "UPLOAD_INCOMPLETE"
    made = init(api, ann, sha256="0" * 64)
    assert api.call("PUT", made["uploadUrl"], b"abc", ann).status_code == 204
    assert code(confirm(api, ann, made)) == "UPLOAD_INCOMPLETE"
    for body, error in (({"size": 10_001}, "PAYLOAD_TOO_LARGE"), ({"size": -1}, "INVALID_DATA"),
                        ({"sha256": "x"}, "INVALID_DATA")):
        assert code(api.call("POST", "/api/files/init", body, ann)) == error


def test_only_the_maker_of_an_upload_reaches_it(api: ApiStage) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    made, url = init(api, ann), create(api, ann)
    for token in (bob, ADMIN_TOKEN):
        assert code(api.call("PUT", made["uploadUrl"], b"x", token)) == "FILE_NOT_FOUND"
        assert code(confirm(api, token, made)) == "FILE_NOT_FOUND"
        assert api.call("HEAD", url, token=token, headers=TUS).status_code == 404
        assert code(patch(api, token, url, 0, b"x")) == "FILE_NOT_FOUND"
        assert code(api.call("DELETE", url, token=token, headers=TUS)) == "FILE_NOT_FOUND"
    assert code(api.call("POST", "/api/files/init", {})) == "AUTH_REQUIRED"
    assert code(api.call("POST", "/api/files/tus", b"", None, TUS)) == "AUTH_REQUIRED"


def test_unfinished_uploads_count_for_the_quota_and_expire(api: ApiStage, tmp_path: Path) -> None:
    ann = api.user("ann")
    made = [init(api, ann, size=10_000) for _ in range(3)]
    answer = api.call("POST", "/api/files/init", {"size": 1}, ann)
    assert answer.status_code == 507 and code(answer) == "FILE_QUOTA_EXCEEDED"
    answer = api.call("POST", "/api/files/tus", b"", ann, {**TUS, "Upload-Length": "1"})
    assert code(answer) == "FILE_QUOTA_EXCEEDED"
    api.call("PUT", made[0]["uploadUrl"], b"x" * 10_000, ann)
    api.clock.advance(limits.UPLOAD_URL_S + 1)
    assert code(api.call("PUT", made[0]["uploadUrl"], b"x", ann)) == "FILE_NOT_FOUND"
    assert code(confirm(api, ann, made[0])) == "FILE_NOT_FOUND"


def test_a_file_whose_size_nobody_declared_is_held_to_the_quota_at_its_end(
    api: ApiStage, tmp_path: Path
) -> None:
    ann = api.user("ann")
    made = [init(api, ann) for _ in range(4)]
    for each in made:
        assert api.call("PUT", each["uploadUrl"], b"x" * 9_000, ann).status_code == 204
    assert [confirm(api, ann, each).status_code for each in made] == [200, 200, 200, 507]
    assert len(on_disk(tmp_path)) == 3


def test_an_upload_in_pieces_goes_on_where_it_stopped(api: ApiStage, tmp_path: Path) -> None:
    ann = api.user("ann")
    meta = ",".join(
        f"{name} {base64.b64encode(value.encode()).decode()}"
        for name, value in (("filename", "../ä.txt"), ("filetype", "text/csv"), ("room", "7"))
    )
    url = create(api, ann, **{"Upload-Metadata": meta + ",empty"})
    assert offset(api, ann, url) == 0
    first = patch(api, ann, url, 0, DATA[:400])
    assert first.status_code == 204 and first.headers["upload-offset"] == "400"
    assert first.headers["tus-resumable"] == "1.0.0" and "upload-expires" in first.headers
    for wrong in (0, 399, 401):
        assert code(patch(api, ann, url, wrong, DATA[400:])) == "UPLOAD_OFFSET_CONFLICT"
    assert code(patch(api, ann, url, 400, DATA[400:] + b"x")) == "PAYLOAD_TOO_LARGE"
    assert offset(api, ann, url) == 400
    assert patch(api, ann, url, 400, DATA[400:]).headers["upload-offset"] == str(len(DATA))
    file_id = url.rpartition("/")[2]
    answer = api.call("GET", f"/api/files/{file_id}", token=ann)
    assert answer.content == DATA and "%C3%A4.txt" in answer.headers["content-disposition"]
    assert offset(api, ann, url) == len(DATA)
    assert code(patch(api, ann, url, len(DATA), b"x")) == "UPLOAD_OFFSET_CONFLICT"
    assert on_disk(tmp_path) == [key_of(file_id)]


def test_creation_may_bring_the_first_bytes_or_all_or_none(api: ApiStage) -> None:
    ann = api.user("ann")
    sent = {**PATCH, "Upload-Length": "1000"}
    for data in (DATA[:10], DATA):
        answer = api.call("POST", "/api/files/tus", data, ann, sent)
        assert answer.status_code == 201 and answer.headers["upload-offset"] == str(len(data))
    answer = api.call("POST", "/api/files/tus", b"", ann, {**TUS, "Upload-Length": "0"})
    file_id = answer.headers["location"].rpartition("/")[2]
    assert api.call("GET", f"/api/files/{file_id}", token=ann).content == b""


def test_bytes_with_another_checksum_are_dropped(api: ApiStage, tmp_path: Path) -> None:
    ann = api.user("ann")
    url = create(api, ann)
    right = "sha256 " + base64.b64encode(hashlib.sha256(DATA[:500]).digest()).decode()
    assert patch(api, ann, url, 0, DATA[:500], **{"Upload-Checksum": right}).status_code == 204
    answer = patch(api, ann, url, 500, b"x" * 500, **{"Upload-Checksum": right})
    assert answer.status_code == 460 and code(answer) == "CHECKSUM_MISMATCH"
    assert offset(api, ann, url) == 500
    for bad in ("sha1 AAAA", "sha256 ?", "sha256 AAAA"):
        answer = patch(api, ann, url, 500, DATA[500:], **{"Upload-Checksum": bad})
        assert code(answer) == "INVALID_DATA"
    # As if the worker had been killed within a request with a checksum.
    (mark,) = (tmp_path / "files" / ".incoming").iterdir()
    mark.with_name(f"{mark.name}.mark").write_text("200")
    assert offset(api, ann, url) == 200
    assert patch(api, ann, url, 200, DATA[200:]).headers["upload-offset"] == str(len(DATA))
    file_id = url.rpartition("/")[2]
    assert api.call("GET", f"/api/files/{file_id}", token=ann).content == DATA


def test_an_upload_that_was_ended_is_gone(api: ApiStage, tmp_path: Path) -> None:
    ann = api.user("ann")
    url = create(api, ann)
    patch(api, ann, url, 0, DATA[:10])
    assert api.call("DELETE", url, token=ann, headers=TUS).status_code == 204
    assert api.call("HEAD", url, token=ann, headers=TUS).status_code == 404
    assert on_disk(tmp_path) == []


def test_one_request_at_a_time_writes_an_upload(api: ApiStage) -> None:
    ann = api.user("ann")
    url = create(api, ann)
    held = api.services.files.folder.resume(key_of(url.rpartition("/")[2]) or "")
    answer = patch(api, ann, url, 0, DATA)
    assert answer.status_code == 423 and code(answer) == "UPLOAD_LOCKED"
    held.close()
    assert patch(api, ann, url, 0, DATA).status_code == 204


@pytest.mark.parametrize(("headers", "status"), [
    ({"Tus-Resumable": "0.2.2", "Upload-Length": "5"}, 412),
    ({"Upload-Length": "5"}, 412),
    ({**TUS}, 400),
    ({**TUS, "Upload-Defer-Length": "1"}, 400),
    ({**TUS, "Upload-Length": "-1"}, 400),
    ({**TUS, "Upload-Length": "20001"}, 413),
    ({**TUS, "Upload-Length": "5", "Upload-Metadata": "name ?"}, 400),
    ({**TUS, "Upload-Length": "5", "Upload-Metadata": "a " + "A" * 8_192}, 400),
])
def test_a_creation_that_is_wrong_is_refused(
    api: ApiStage, headers: dict[str, str], status: int
) -> None:
    answer = api.call("POST", "/api/files/tus", b"", api.user("ann"), headers)
    assert answer.status_code == status and answer.headers["tus-resumable"] == "1.0.0"


def test_options_say_what_the_server_can_do(api: ApiStage) -> None:
    headers = api.call("OPTIONS", "/api/files/tus").headers
    assert headers["tus-version"] == "1.0.0" and headers["tus-max-size"] == "20000"
    assert "creation-with-upload" in headers["tus-extension"]
    assert headers["tus-checksum-algorithm"] == "sha256"


def test_dead_uploads_are_collected(api: ApiStage, tmp_path: Path) -> None:
    ann = api.user("ann")
    url = create(api, ann)
    patch(api, ann, url, 0, DATA[:10])
    (path,) = (tmp_path / "files" / ".incoming").iterdir()
    now_s = api.clock.wall_ns() / 1e9
    os.utime(path, (now_s, now_s))
    api.clock.advance(limits.UPLOAD_KEPT_S + 7_200)
    create(api, ann)
    assert not path.exists()


def test_the_end_of_an_account_deletes_its_files(api: ApiStage, tmp_path: Path) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    patch(api, ann, create(api, ann), 0, DATA[:10])
    for token in (ann, bob):
        assert api.call("POST", "/api/files/upload", DATA, token).status_code == 201
    assert len(on_disk(tmp_path)) == 3
    answer = api.call("DELETE", "/api/auth/account", token=ann)
    assert answer.status_code == 200, answer.text
    assert len(on_disk(tmp_path)) == 1
    listed = api.call("GET", "/api/files", token=ADMIN_TOKEN).json["files"]
    assert [file["owner"] for file in listed] == ["bob"]
