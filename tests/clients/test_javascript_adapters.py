"""The adapters in Chromium: lists of React, Preact, Vue and a Svelte store follow the server."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from pylon import clientjs
from tests.clients.test_javascript import MANIFEST
from tests.support.browser import Browser
from tests.support.server import PylonServer

HERE = Path(__file__).parent
CLIENT = Path(clientjs.__file__).parent
MODULES = HERE.parents[1] / "web" / "node_modules"
FRAMEWORKS = ("preact", "react", "vue", "svelte")
PAGE = """<!doctype html><title>Adapters</title>
<div id="preact"></div><div id="react"></div><div id="vue"></div><div id="svelte"></div>
<script src="bundle.js"></script>
<script type="module">
import { pylon } from "/client/pylon.js";
globalThis.app = pylon({ store: "memory" });
await app.auth.guest();
const options = { order: { rank: "asc" }, limit: 10 };
globalThis.ends = Object.entries(mounts).map(
  ([name, mount]) => mount(app, options, document.getElementById(name)));
</script>"""


def shows(text: str) -> str:
    return " && ".join(
        f"document.getElementById('{name}').textContent === '{text}'" for name in FRAMEWORKS
    )


@pytest.mark.usefixtures("processes")
def test_lists_of_all_frameworks_follow_and_end(
    make_server: Callable[..., PylonServer], program: Callable[[str, str], str], tmp_path: Path
) -> None:
    esbuild = MODULES / ".bin" / "esbuild"
    if not esbuild.exists() or shutil.which("node") is None:
        pytest.skip("the bundler is not installed (make web)")
    chromium = program("chromium", "chromium")
    public = tmp_path / "public"
    public.mkdir()
    (public / "index.html").write_text(PAGE)
    subprocess.run(
        [
            str(esbuild), str(HERE / "adapters.mjs"), "--bundle", f"--outfile={public}/bundle.js",
            "--define:process.env.NODE_ENV=\"production\"", "--log-level=error",
            *(f"--alias:pylon-client/{name}={CLIENT}/{name}.js" for name in FRAMEWORKS),
        ],
        check=True, timeout=60, env={"NODE_PATH": str(MODULES), "PATH": "/usr/bin:/bin"},
    )
    server = make_server(
        MANIFEST, PYLON_DEV_MODE="true", PYLON_STATIC_DIR=str(public)
    ).start()
    with Browser(chromium, tmp_path / "browser") as browser:
        page = browser.open(f"http://127.0.0.1:{server.port}/app/")
        page.wait("all are mounted", "globalThis.ends?.length === 4")
        page.run("app.insert('Item', {group: 'g', rank: 2, text: 'b'}).then(() => 0)")
        page.run("app.insert('Item', {group: 'g', rank: 1, text: 'a'}).then(() => 0)")
        page.wait("the rows in all lists", shows("a,b+"))
        page.run("for (const end of ends) end(); 0")
        page.wait("nobody needs the server any more", "app.status.state === 'idle'")
        assert page.run(
            "['react', 'preact', 'vue'].every(name => !document.getElementById(name).innerText)"
        )
        assert page.console == []
