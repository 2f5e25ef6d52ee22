"""Dev mode in a real Chromium: the start page, the overlay of errors, and pages that reload."""

from __future__ import annotations

import http.client
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pylon.dev_problems import code_frame, problems_of
from pylon.errors import SettingsRefused, StartRefused
from tests.support.api import serve_api
from tests.support.browser import Browser, Page
from tests.support.manifests import notes_app
from tests.support.server import PylonServer
from tests.support.wait import WAIT_S, wait_until

DEV_PATHS = ("/", "/client/dev.js", "/client/dev/state")
OVERLAY = "document.querySelector('pylon-dev-overlay')"
OVERLAY_TEXT = f"({OVERLAY}?.shadowRoot.textContent ?? '')"
PAGE = '<!doctype html><meta name="viewport" content="width=device-width"><h1>{title}</h1>'
APP = """from pylon import Entity, app, policy

app("notes")


class Note(Entity):
    text: str

    rules = policy(allow={rule!r})
"""


@pytest.fixture(scope="module")
def dev(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    """`pylonctl dev` in the folder of an app in Python that has no page yet."""
    server = PylonServer(tmp_path_factory.mktemp("dev"), notes_app(), {
        "PYLON_HTTP_WORKERS": "1", "PYLON_WS_WORKERS": "1", "PYLON_SSE_WORKERS": "0",
        "PYLON_SHARD_WORKERS": "0",
    })
    for name in ("DEV_MODE", "ADMIN_TOKEN", "CORS_ORIGIN", "LOG_FORMAT", "MANIFEST"):
        del server.env[f"PYLON_{name}"]
    server.manifest_path.unlink()
    (server.folder / ".env").write_text(
        f"PYLON_ADMIN_TOKEN={'d' * 40}\nPYLON_APP=app.py\nPYLON_STATIC_DIR=public\n"
    )
    (server.folder / "public").mkdir()
    (server.folder / "app.py").write_text(APP.format(rule="true"))
    with server.log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "pylon.cli.main", "dev"],
            env=server.full_env(), cwd=server.folder, stdout=log, stderr=log,
        )
    try:
        wait_until("dev is ready", lambda: "is ready" in server.log_path.read_text())
        yield server
    finally:
        process.terminate()
        process.wait(WAIT_S)


@pytest.fixture
def browser(program: Callable[[str, str], str], tmp_path: Path) -> Iterator[Browser]:
    with Browser(program("chromium", "chromium"), tmp_path / "browser") as browser:
        yield browser


def narrow(page: Page, scheme: str) -> None:
    page.command("Emulation.setDeviceMetricsOverride", {
        "width": 360, "height": 800, "deviceScaleFactor": 1, "mobile": True,
    })
    page.command("Emulation.setEmulatedMedia", {
        "features": [{"name": "prefers-color-scheme", "value": scheme}],
    })


def test_a_new_app_has_a_start_page_until_it_has_a_page(
    dev: PylonServer, browser: Browser
) -> None:
    """The page that the start page proposes is saved; it then shows in the same tab."""
    page = browser.open(f"http://127.0.0.1:{dev.port}/")
    page.wait("the start page", "document.querySelector('h1')?.textContent === 'notes'")
    for scheme, ground in (("light", "rgb(255, 255, 255)"), ("dark", "rgb(22, 22, 22)")):
        narrow(page, scheme)
        assert page.run("getComputedStyle(document.body).backgroundColor") == ground
        assert page.run("document.documentElement.scrollWidth") == 360, "nothing is wider"
    text = page.run("document.body.innerText")
    assert f"http://127.0.0.1:{dev.port}/api/entities/Note" in text
    assert "public/index.html" in text and "app.py" in text
    links = page.run("[...document.links].map(link => link.getAttribute('href'))")
    for link in links:
        assert dev.request("GET", link)[0] == 200, link
    assert {"/metrics", "/api/openapi.json"} <= set(links)

    sample = page.run("document.querySelector('pre').textContent")
    (dev.folder / "public" / "index.html").write_text(sample)
    page.wait("the page of the app", "location.pathname === '/app/'")
    status, row, _ = dev.request("POST", "/api/entities/Note", {"text": "hello"}, token="d" * 40)
    assert status == 201, row
    page.wait("its rows", "document.getElementById('rows').textContent.includes('hello')")


def test_an_error_shows_over_the_page_until_it_is_mended(
    dev: PylonServer, browser: Browser
) -> None:
    index = dev.folder / "public" / "index.html"
    index.write_text(PAGE.format(title="first"))
    page = browser.open(f"http://127.0.0.1:{dev.port}/app/rooms/1")
    page.wait("the page", "document.querySelector('h1')?.textContent === 'first'")
    page.run("window.mark = 1")

    app = dev.folder / "app.py"
    app.write_text(APP.format(rule="data.texd == 1"))
    page.wait("the overlay", f"{OVERLAY_TEXT}.includes('texd')")
    shown = page.run(OVERLAY_TEXT)
    assert "app.py:9:" in shown, "the place"
    assert "> 9 |     rules = policy(allow='data.texd == 1')\n" in shown, "the frame"
    assert "did you mean text" in shown, "the remedy"
    for scheme in ("light", "dark"):
        narrow(page, scheme)
        assert page.run(f"{OVERLAY}.scrollWidth <= 360")
    assert dev.request("GET", "/api/entities/Note", token="d" * 40)[0] == 200, "it serves on"
    page.run(f"{OVERLAY}.shadowRoot.querySelector('button').click()")
    assert page.run(f"getComputedStyle({OVERLAY}).display") == "none"

    app.write_text(APP.format(rule="true").replace("Note(Entity)", "Note(Entitty)"))
    page.wait("another error", f"{OVERLAY_TEXT}.includes('NameError')")
    assert "Entity" in page.run(f"{OVERLAY}.shadowRoot.querySelector('.hint').textContent")
    assert page.run(f"getComputedStyle({OVERLAY}).display") == "block"
    assert page.run("window.mark") == 1, "an error reloads no page"

    app.write_text(APP.format(rule="true") + "\n    more: bool = False\n")
    page.wait("the page anew", "window.mark === undefined && document.querySelector('h1') !== null")
    page.wait("no overlay", f"{OVERLAY} === null")
    assert "more" in str(dev.request("GET", "/api/manifest")[1])

    page.run("window.mark = 2")
    index.write_text(PAGE.format(title="other"))  # of the same size, perhaps in the same second
    page.wait("the new page", "document.querySelector('h1')?.textContent === 'other'")


def fetch(server: PylonServer, path: str, **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=WAIT_S)
    connection.request("GET", path, headers=headers)
    response = connection.getresponse()
    found = {name.lower(): value for name, value in response.getheaders()}
    return response.status, found, response.read()


def test_a_page_gets_the_script_at_the_end_of_its_body(dev: PylonServer) -> None:
    public = dev.folder / "public"
    start, end = "<body><script>'</body>'</script>", "</body></html>"
    (public / "whole.html").write_text(start + end)
    (public / "utf16.html").write_text(start, encoding="utf-16")
    (public / "plain.txt").write_text(start + end)
    status, headers, body = fetch(dev, "/app/whole.html", **{"If-None-Match": "*"})
    assert status == 200
    assert headers["content-length"] == str(len(body))
    assert "etag" not in headers and headers["cache-control"] == "no-store"
    text = body.decode()
    assert text.startswith(start + '<script src="/client/dev.js" data-version="')
    assert text.endswith(' defer></script>' + end)
    for name in ("utf16.html", "plain.txt"):
        assert fetch(dev, f"/app/{name}")[2] == (public / name).read_bytes()
    assert fetch(dev, "/app/plain.txt", Range="bytes=0-5")[::2] == (206, b"<body>")


def test_outside_of_dev_mode_none_of_it_exists(tmp_path: Path) -> None:
    public = tmp_path / "public"
    public.mkdir()
    with serve_api(tmp_path, notes_app(), {"PYLON_STATIC_DIR": str(public)}) as server:
        get = server.client.simulate_get
        assert [get(path).status_code for path in (*DEV_PATHS, "/app/")] == [404] * 4
        page = b"<!doctype html><body><h1>mine</h1></body>"
        (public / "index.html").write_bytes(page)  # after the start
        for path in ("/app/", "/app/index.html", "/app/rooms/1"):
            answer = get(path)
            assert (answer.status_code, answer.content) == (200, page)
            again = get(path, headers={"If-None-Match": answer.headers["etag"]})
            assert again.status_code == 304
        assert (get("/").status_code, get("/").headers["location"]) == (302, "/app/")
        assert [get(path).status_code for path in DEV_PATHS[1:]] == [404] * 2
    (tmp_path / "bare").mkdir()
    with serve_api(tmp_path / "bare", notes_app()) as server:
        assert [server.client.simulate_get(path).status_code for path in DEV_PATHS] == [404] * 3


def test_each_kind_of_refusal_has_its_problems(tmp_path: Path) -> None:
    app = tmp_path / "app.py"
    app.write_text("import pylon\n\tx = nothing\n")
    refused = StartRefused(f"PYLON_APP is {app}: line 2: NameError: nothing")
    assert [(p.message, p.place, p.frame) for p in problems_of(refused)] == [
        ("NameError: nothing", f"{app}:2", "  1 | import pylon\n> 2 |  x = nothing"),
    ]
    several = problems_of(SettingsRefused(["PYLON_PORT is x", "PYLON_BIND is y"]))
    assert [(p.message, p.place) for p in several] == [
        ("PYLON_PORT is x", None), ("PYLON_BIND is y", None),
    ]
    assert [p.message for p in problems_of(StartRefused("too old", hint="renew"))] == ["too old"]
    assert code_frame(str(app), 1, 8) == (
        "> 1 | import pylon\n    |        ^\n  2 |  x = nothing"
    )
    for line in (None, 0, 9):
        assert code_frame(str(app), line, 1) is None
    assert code_frame(str(tmp_path / "absent"), 1, 1) is None
