"""The example's page in a real browser: two visitors, and what one does the other sees."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page
from tests.support.server import PylonServer

pytestmark = pytest.mark.stores

EXAMPLE = Path(__file__).parent.parent / "examples" / "todo"


def titles(page: Page) -> list[str]:
    found: list[str] = page.run(
        "[...document.querySelectorAll('#list span')].map(s => s.textContent)"
    )
    return found


def shows(title: str) -> str:
    return f"[...document.querySelectorAll('#list span')].some(s=>s.textContent==='{title}')"


def add(page: Page, title: str, shared: bool) -> None:
    page.run(
        f"document.getElementById('title').value={json.dumps(title)};"
        f"document.getElementById('shared').checked={json.dumps(shared)};"
        "document.getElementById('add').requestSubmit()"
    )
    page.wait(f"{title} in the own list", shows(title))


def test_two_visitors_see_each_others_shared_todos_live(
    make_server: Callable[..., PylonServer], program: Callable[[str, str], str], tmp_path: Path
) -> None:
    chromium = program("chromium", "chromium")
    manifest = json.loads((EXAMPLE / "pylon.manifest.json").read_text())
    server = make_server(
        manifest, PYLON_DEV_MODE="true", PYLON_STATIC_DIR=str(EXAMPLE / "public"),
        PYLON_SEED=str(EXAMPLE / "seed.json"),
    ).start()
    url = f"http://127.0.0.1:{server.port}/app/"
    with Browser(chromium, tmp_path / "ann") as one, Browser(chromium, tmp_path / "bob") as two:
        ann, bob = one.open(url), two.open(url)
        for page in (ann, bob):
            page.wait(
                "live", "(document.getElementById('state')?.textContent ?? '').startsWith('live')"
            )
            assert "Open this page in two windows" in titles(page)
        add(ann, "for everybody", shared=True)
        add(ann, "a secret", shared=False)
        add(ann, "the end", shared=True)
        bob.wait("what ann shared last", shows("the end"))
        assert "for everybody" in titles(bob)
        assert "a secret" not in titles(bob)

        before = server.pids("ws")
        ann.run(
            "[...document.querySelectorAll('#list li')].find(l=>l.querySelector('span')"
            ".textContent==='for everybody').querySelector('button').click()"
        )
        bob.wait("ann's delete", f"!({shows('for everybody')})")
        assert server.terminate() == 0
        server.start()
        assert server.pids("ws") != before
        add(ann, "after a restart", shared=True)
        bob.wait("what came after the restart", shows("after a restart"), 40)
        assert ann.console == bob.console == []
