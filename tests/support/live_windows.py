"""A stage of live windows, and the diffs of one client as numbers of rows.

Used by the tests of live windows that follow single diffs.
"""

from __future__ import annotations

from typing import Any

import orjson

from pylon import metrics
from pylon.auth_context import AuthContext
from pylon.manifest_loader import parse_manifest
from tests.support.live import LiveClient, LiveStage, LiveWindow
from tests.support.manifests import windows_app
from tests.support.storage import row_id
from tests.support.wait import run_greenlets_until

WINDOWS_APP = parse_manifest(orjson.dumps(windows_app()).decode(), "manifest.json")
ADA, BOB = AuthContext(user_id="ada"), AuthContext(user_id="bob")
NEWEST = {"$order": {"rank": "desc"}, "$limit": 3}


def fill(world: LiveStage, count: int, entity: str = "Public", **body: Any) -> None:
    world.write(*(world.insert(entity, row_id(n), rank=n, **body) for n in range(1, count + 1)))
    world.publish()


def settle(world: LiveStage) -> None:
    """Let the greenlets read that have to."""
    windows = world.live._windows
    run_greenlets_until(
        "no window lacks rows", lambda: not windows._lacking and not windows._readers
    )


def diffs_of(client: LiveClient, world: LiveStage, *ops: Any) -> list[tuple[str, int, Any]]:
    """Commit, and return (kind, number of the row, number of the row before it or "-")."""
    taken: list[dict[str, Any]] = []
    window = client.windows["s"]
    take = LiveWindow.take

    def note(message: dict[str, Any]) -> None:
        taken.append(message)
        take(window, message)

    client.listen()
    window.take = note  # type: ignore[method-assign]
    world.write(*ops)
    world.publish()
    settle(world)
    client.listen()
    del window.take
    return [
        (m["kind"], int(m["row_id"], 16), "-" if "after" not in m else
         None if m["after"] is None else int(m["after"], 16))
        for m in taken
    ]


def reads_of(reason: str) -> float:
    """Return how many reads there were for a reason."""
    return metrics.LIVE_WINDOW_READS.labels(reason)._value.get()
