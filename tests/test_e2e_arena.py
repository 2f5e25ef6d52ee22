"""The arena in a real browser: two pages play, each sees the other move."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.browser import Browser, Page
from tests.support.server import PylonServer

pytestmark = [pytest.mark.usefixtures("processes"), pytest.mark.stores]

EXAMPLE = Path(__file__).parent.parent / "examples" / "arena"


def key(page: Page, name: str, *, down: bool) -> None:
    kind = "keydown" if down else "keyup"
    page.run(f"dispatchEvent(new KeyboardEvent('{kind}', {{key: {json.dumps(name)}}}))")


def mine(page: Page) -> dict[str, Any]:
    """Where the server has the page's own player."""
    found: dict[str, Any] = page.run("snapshots.at(-1).players[app.auth.userId]")
    return found


def test_two_pages_play_and_each_sees_the_other(
    make_server: Callable[..., PylonServer], program: Callable[[str, str], str], tmp_path: Path
) -> None:
    chromium = program("chromium", "chromium")
    manifest = json.loads((EXAMPLE / "pylon.manifest.json").read_text())
    server = make_server(
        manifest, PYLON_DEV_MODE="true", PYLON_STATIC_DIR=str(EXAMPLE / "public"),
        PYLON_APP=str(EXAMPLE / "game.py"),
    ).start()
    url = f"http://127.0.0.1:{server.port}/app/"
    with Browser(chromium, tmp_path / "ann") as one, Browser(chromium, tmp_path / "bob") as two:
        ann, bob = one.open(url), two.open(url)
        for page in (ann, bob):
            page.wait("the page has its script", "typeof snapshots !== 'undefined'")
            page.wait("two players", "Object.keys(snapshots.at(-1)?.players ?? {}).length === 2")
        for mover, watcher in ((ann, bob), (bob, ann)):
            start = mine(mover)
            name = "ArrowLeft" if start["x"] > 400 else "ArrowRight"
            who = json.dumps(mover.run("app.auth.userId"))
            key(mover, name, down=True)
            # At once, before any answer of the server: the page predicts.
            mover.wait("prediction", f"Math.abs(me.x - {start['x']}) > 5")
            moved = f"(p => p && Math.abs(p.x - {start['x']}) > 60)"
            watcher.wait(
                "the other one's way, interpolated",
                f"{moved}(others(performance.now()).find(p => p.id === {who}))",
            )
            key(mover, name, down=False)
            mover.wait("rest", "snapshots.at(-1).players[app.auth.userId].vx === 0")
            mover.wait(
                "the prediction comes to where the server has it",
                "(p => Math.hypot(me.x - p.x, me.y - p.y) < 2)"
                "(snapshots.at(-1).players[app.auth.userId])",
            )
            mover.wait("all inputs confirmed", "match.pending.length === 0")

        before = mine(ann)
        ann.run("match.retry()")
        ann.wait("the seat is found again", "match.status.state === 'live'")
        ann.wait("snapshots again", "snapshots.at(-1).at > performance.now() - 200")
        after = mine(ann)
        assert (after["x"], after["y"], after["score"]) == (
            before["x"], before["y"], before["score"])
        assert ann.console == bob.console == []


def test_the_game_is_as_short_as_is_said() -> None:
    code = [
        line for line in (EXAMPLE / "game.py").read_text().splitlines()
        if line.strip() and not line.strip().startswith(('"""', "#"))
    ]
    assert len(code) <= 45
