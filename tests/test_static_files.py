"""PYLON_STATIC_DIR: files under /app/, nothing from outside the folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tests.support.server import PylonServer


def test_files_index_and_no_way_out(
    make_server: Callable[..., PylonServer], tmp_path: Path
) -> None:
    public = tmp_path / "public"
    public.mkdir()
    (public / "index.html").write_text("<title>the index</title>")
    (public / "a.js").write_text("1")
    (tmp_path / "secret.txt").write_text("secret")
    server = make_server(PYLON_STATIC_DIR=str(public), PYLON_HTTP_WORKERS="1").start()
    status, body, headers = server.request("GET", "/app/")
    assert (status, headers["content-type"]) == (200, "text/html")
    assert body == "<title>the index</title>"
    status, body, headers = server.request("GET", "/app/a.js")
    assert (status, body) == (200, "1")
    assert "javascript" in headers["content-type"]
    assert server.request("GET", "/app/some/page")[1] == "<title>the index</title>"
    for path in ("/app/../secret.txt", "/app/%2e%2e/secret.txt", "/app/..%2fsecret.txt"):
        assert "secret" not in str(server.request("GET", path)[1])
    assert server.request("GET", "/nowhere")[0] == 404
    for method in ("POST", "PUT", "DELETE", "PATCH"):
        status, body, headers = server.request(method, "/app/a.js")
        assert (status, body["error"]["code"]) == (405, "METHOD_NOT_ALLOWED")
        assert headers["allow"] == "GET, HEAD, OPTIONS"


def test_a_folder_that_is_not_there_is_refused(make_server: Callable[..., PylonServer]) -> None:
    done = make_server(PYLON_STATIC_DIR="nowhere").ctl("start")
    assert done.returncode == 78
    assert "PYLON_STATIC_DIR" in done.stderr
