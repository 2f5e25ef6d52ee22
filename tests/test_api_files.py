"""Files over HTTP: the three forms of upload, reads, rights, links, limits."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import falcon.testing
import pytest

from pylon.files.records import TABLE
from tests.support.api import ADMIN_TOKEN, ApiStage, serve_api
from tests.support.manifests import notes_app

pytestmark = pytest.mark.stores

PNG = b"\x89PNG\r\n\x1a\n" + b"picture" * 100
SETTINGS = {"PYLON_SECRET_KEY": bytes(range(32)).hex(), "PYLON_FILE_MAX_BYTES": "1000000"}


@pytest.fixture
def api(tmp_path: Path) -> Iterator[ApiStage]:
    settings = {**SETTINGS, "PYLON_FILES_DIR": str(tmp_path / "files")}
    with serve_api(tmp_path, notes_app(), settings) as stage:
        yield stage


def upload(
    api: ApiStage, token: str, data: bytes = PNG, name: str = "cat.png", kind: str = "image/png"
) -> Any:
    answer = api.call(
        "POST", "/api/files/upload", data, token,
        {"Content-Type": kind, "X-Filename": name},
    )
    assert answer.status_code == 201, answer.text
    return answer.json


def code(answer: falcon.testing.Result) -> str:
    found: str = answer.json["error"]["code"]
    return found


def on_disk(tmp_path: Path) -> list[str]:
    return sorted(path.name for path in (tmp_path / "files").rglob("*") if path.is_file())


def form(*parts: tuple[str, bytes], end: bytes = b"--xyz--\r\n") -> bytes:
    return b"".join(
        b"--xyz\r\nContent-Disposition: form-data; " + head.encode() + b"\r\n\r\n" + body + b"\r\n"
        for head, body in parts
    ) + end


def test_a_file_in_one_request_comes_back_as_it_was(api: ApiStage) -> None:
    ann = api.user("ann")
    made = upload(api, ann)
    assert made["size"] == len(PNG) and made["type"] == "image/png"
    assert made["sha256"] == hashlib.sha256(PNG).hexdigest()
    assert made["url"] == f"/api/files/{made['id']}" and made["id"].endswith("_cat_png")
    answer = api.call("GET", made["url"], token=ann)
    assert answer.status_code == 200 and answer.content == PNG
    headers = answer.headers
    assert headers["content-type"] == "image/png"
    assert headers["content-disposition"] == 'inline; filename="cat.png"'
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert headers["cross-origin-resource-policy"] == "same-site"
    assert headers["cache-control"] == "private, no-cache"
    assert headers["etag"] == f'"sha256-{made["sha256"]}"'
    head = api.call("HEAD", made["url"], token=ann)
    assert head.headers["content-length"] == str(len(PNG)) and head.content == b""


@pytest.mark.parametrize(("sent", "status", "first", "last"), [
    ("bytes=0-9", 206, 0, 9),
    ("bytes=700-", 206, 700, 707),
    ("bytes=-8", 206, 700, 707),
    ("bytes=-99999", 206, 0, 707),
    ("bytes=5-99999", 206, 5, 707),
    ("bytes=0-1,3-4", 200, 0, 707),
    ("bytes=9-3", 200, 0, 707),
    ("bytes=-", 200, 0, 707),
    ("lines=0-1", 200, 0, 707),
    ("bytes=708-", 416, 0, 0),
    ("bytes=-0", 416, 0, 0),
    ("bytes=9223372036854775808-", 416, 0, 0),
    ("bytes=" + ",".join(["0-0"] * 10_000), 200, 0, 707),
])
def test_one_range_is_answered_and_any_other_header_is_ignored(
    api: ApiStage, sent: str, status: int, first: int, last: int
) -> None:
    data = PNG[:708]
    url = upload(api, api.user("ann"), data)["url"]
    answer = api.call("GET", url, token=ADMIN_TOKEN, headers={"Range": sent})
    assert answer.status_code == status
    if status == 416:
        assert code(answer) == "RANGE_NOT_SATISFIABLE"
        assert answer.headers["content-range"] == "bytes */708"
    else:
        assert answer.content == data[first:last + 1]
    if status == 206:
        assert answer.headers["content-range"] == f"bytes {first}-{last}/708"


def test_conditions_compare_the_etag(api: ApiStage) -> None:
    ann = api.user("ann")
    url = upload(api, ann)["url"]
    etag = api.call("HEAD", url, token=ann).headers["etag"]
    for sent in (etag, f'W/{etag}', f'"other", {etag}', "*"):
        answer = api.call("GET", url, token=ann, headers={"If-None-Match": sent})
        assert answer.status_code == 304 and answer.content == b""
    for if_range, status in ((etag, 206), (f"W/{etag}", 200), ('"other"', 200)):
        headers = {"Range": "bytes=0-0", "If-Range": if_range}
        assert api.call("GET", url, token=ann, headers=headers).status_code == status


def test_the_owner_an_admin_and_everybody_for_a_public_file_may_read(api: ApiStage) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    url = upload(api, ann)["url"]
    for method in ("GET", "HEAD"):
        assert api.call(method, url, token=ADMIN_TOKEN).status_code == 200
        for token in (bob, None):
            answer = api.call(method, url, token=token, headers={"If-None-Match": "*"})
            assert answer.status_code == 404
    for method, body in (("PATCH", {"public": True}), ("DELETE", None)):
        assert code(api.call(method, url, body, bob)) == "FILE_NOT_FOUND"
    assert code(api.call("POST", f"{url}/sign", {}, bob)) == "FILE_NOT_FOUND"
    changed = api.call("PATCH", url, {"public": True, "name": "../dog.png"}, ann)
    assert changed.json["public"] is True and changed.json["name"] == "dog.png"
    answer = api.call("GET", url)
    assert answer.status_code == 200 and "dog.png" in answer.headers["content-disposition"]
    assert code(api.call("PATCH", url, {"public": False}, bob)) == "FILE_NOT_FOUND"


def test_a_deleted_file_is_gone_from_the_disk(api: ApiStage, tmp_path: Path) -> None:
    ann = api.user("ann")
    url = upload(api, ann)["url"]
    assert len(on_disk(tmp_path)) == 1
    assert api.call("DELETE", url, token=ann).status_code == 204
    assert on_disk(tmp_path) == []
    assert code(api.call("GET", url, token=ann)) == "FILE_NOT_FOUND"


def test_a_list_has_the_files_of_the_caller_in_pages(api: ApiStage) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    ids = [upload(api, ann, name=f"{n}.png")["id"] for n in range(3)]
    text = upload(api, ann, b"hello", "a.txt", "text/plain")["id"]
    theirs = upload(api, bob)["id"]
    answer = api.call("GET", "/api/files?limit=2", token=ann).json
    assert [file["id"] for file in answer["files"]] == ids[:2] and answer["next"] == ids[1]
    answer = api.call("GET", f"/api/files?after={answer['next']}", token=ann).json
    assert [file["id"] for file in answer["files"]] == [ids[2], text] and answer["next"] is None
    answer = api.call("GET", "/api/files?type=text/plain&attached=false", token=ann).json
    assert [file["id"] for file in answer["files"]] == [text]
    answer = api.call("GET", "/api/files?type=image/*", token=ADMIN_TOKEN).json
    assert [file["id"] for file in answer["files"]] == [*ids, theirs]
    assert code(api.call("GET", "/api/files?owner=bob", token=ann)) == "FORBIDDEN"
    assert code(api.call("GET", "/api/files")) == "AUTH_REQUIRED"


def test_multipart_takes_the_first_file_and_the_fields_before_it(
    api: ApiStage, tmp_path: Path
) -> None:
    body = form(
        ('name="album"', b"summer"), ('name="file"; filename="a/b\\c.png"', PNG),
        ('name="late"', b"no"), ('name="other"; filename="d.png"', b"d"),
    )
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    answer = api.call("POST", "/api/files/upload", body, api.user("ann"), headers)
    assert answer.status_code == 201, answer.text
    assert answer.json["name"] == "c.png" and answer.json["size"] == len(PNG)
    stored = api.services.files.store.point(lambda reader: reader.records(TABLE, []))
    assert [record["meta"] for record in stored] == ['{"album":"summer"}']
    assert len(on_disk(tmp_path)) == 1


@pytest.mark.parametrize(("kind", "body"), [
    ("multipart/form-data", form(('name="f"; filename="a"', PNG))),
    ("multipart/form-data; boundary=" + "x" * 80, form(('name="f"; filename="a"', PNG))),
    ("multipart/form-data; boundary=xyz", form(('name="a"', b"1"))),
    ("multipart/form-data; boundary=xyz", form(('name="f"; filename="a"', PNG), end=b"")),
    ("multipart/form-data; boundary=xyz", b"nothing"),
    ("multipart/form-data; boundary=xyz", b""),
    ("multipart/form-data; boundary=xyz",
     form(*[('name="a"', b"1")] * 100, ('name="f"; filename="a"', PNG))),
    ("multipart/form-data; boundary=xyz",
     form(('name="' + "x" * 1_000_000 + '"', b"1"), ('name="f"; filename="a"', PNG))[:900_000]),
    ("multipart/form-data; boundary=xyz",
     form(('name="a"', b"x" * 100_000), ('name="f"; filename="a"', PNG))),
], ids=["no boundary", "long boundary", "no file", "no end", "no parts", "empty", "many parts",
        "long header", "long field"])
def test_broken_multipart_leaves_nothing_behind(
    api: ApiStage, tmp_path: Path, kind: str, body: bytes
) -> None:
    answer = api.call(
        "POST", "/api/files/upload", body, api.user("ann"), {"Content-Type": kind}
    )
    assert answer.status_code == 400 and code(answer) == "INVALID_MULTIPART", answer.text
    assert on_disk(tmp_path) == []


def test_what_is_too_large_or_packed_is_refused(api: ApiStage, tmp_path: Path) -> None:
    ann = api.user("ann")
    answer = api.call("POST", "/api/files/upload", b"x" * 1_000_001, ann)
    assert code(answer) == "PAYLOAD_TOO_LARGE"
    body = form(('name="f"; filename="a"', b"x" * 1_000_001))
    headers = {"Content-Type": "multipart/form-data; boundary=xyz"}
    assert code(api.call("POST", "/api/files/upload", body, ann, headers)) == "PAYLOAD_TOO_LARGE"
    answer = api.call("POST", "/api/files/upload", PNG, ann, {"Content-Encoding": "gzip"})
    assert answer.status_code == 415
    assert code(api.call("POST", "/api/files/upload", PNG)) == "AUTH_REQUIRED"
    assert on_disk(tmp_path) == []


def test_a_quota_holds_over_all_files_of_a_user(tmp_path: Path) -> None:
    settings = {
        **SETTINGS, "PYLON_FILES_DIR": str(tmp_path / "files"), "PYLON_FILES_QUOTA_BYTES": "1000",
    }
    with serve_api(tmp_path, notes_app(), settings) as api:
        ann, bob = api.user("ann"), api.user("bob")
        first = upload(api, ann, b"x" * 600, "a.txt", "text/plain")
        answer = api.call("POST", "/api/files/upload", b"x" * 401, ann)
        assert answer.status_code == 507 and code(answer) == "FILE_QUOTA_EXCEEDED"
        assert len(on_disk(tmp_path)) == 1
        upload(api, bob, b"x" * 1000, "a.txt", "text/plain")
        assert api.call("DELETE", first["url"], token=ann).status_code == 204
        upload(api, ann, b"x" * 1000, "a.txt", "text/plain")


def test_uploads_have_a_rate(api: ApiStage) -> None:
    ann = api.user("ann")
    found = {
        api.call("POST", "/api/files/upload", b"x", ann).status_code for _ in range(110)
    }
    assert found == {201, 429}


def test_a_signed_link_reads_one_file_until_it_ends(api: ApiStage) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    made, other = upload(api, ann), upload(api, ann)
    link = api.call("POST", f"{made['url']}/sign", {"expires_s": 60}, ann).json
    answer = api.call("GET", link["url"])
    assert answer.status_code == 200 and answer.content == PNG
    assert answer.headers["cache-control"].startswith("private, max-age=")
    assert api.call("HEAD", link["url"], token=bob).status_code == 200
    query = link["url"].partition("?")[2]
    wrong = [
        f"{other['url']}?{query}", f"{link['url']}&download=1", f"{link['url']}0",
        link["url"].replace("expires=", "expires=1"), f"{made['url']}?expires=9",
        f"{made['url']}?signature=aa", f"{made['url']}?expires=-1&signature=aa",
    ]
    for url in wrong:
        assert code(api.call("GET", url)) == "LINK_INVALID"
    for method in ("PATCH", "DELETE"):
        assert api.call(method, link["url"], {"public": True}).status_code == 404
    download = api.call("POST", f"{made['url']}/sign", {"download": True}, ann).json["url"]
    headers = api.call("GET", download).headers
    assert headers["content-disposition"].startswith("attachment;")
    api.clock.advance(61)
    assert code(api.call("GET", link["url"])) == "LINK_INVALID"
    assert api.call("POST", f"{made['url']}/sign", {"expires_s": 604_801}, ann).status_code == 400


def test_a_reader_signs_links_that_end_within_an_hour(api: ApiStage) -> None:
    ann, bob = api.user("ann"), api.user("bob")
    url = upload(api, ann)["url"]
    api.call("PATCH", url, {"public": True}, ann)
    assert api.call("POST", f"{url}/sign", {"expires_s": 3_600}, bob).status_code == 200
    assert code(api.call("POST", f"{url}/sign", {"expires_s": 3_601}, bob)) == "LIMIT_EXCEEDED"
    assert api.call("POST", f"{url}/sign", {"expires_s": 3_601}, ann).status_code == 200


def test_nginx_sends_the_bytes_where_it_is_told(tmp_path: Path) -> None:
    settings = {
        **SETTINGS, "PYLON_FILES_DIR": str(tmp_path / "files"), "PYLON_FILES_ACCEL": "/protected/",
    }
    with serve_api(tmp_path, notes_app(), settings) as api:
        ann = api.user("ann")
        made = upload(api, ann)
        answer = api.call("GET", made["url"], token=ann)
        key = made["id"].split("_")[1]
        assert answer.headers["x-accel-redirect"] == f"/protected/{key[-2:]}/{key}"
        assert answer.content == b"" and (tmp_path / "files" / key[-2:] / key).is_file()
