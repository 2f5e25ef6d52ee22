"""The behaviour of the JavaScript client in Node and in Chromium, before a server behind a proxy.

`behaviour.mjs` has the scenarios, and `scenarios.json` says what each of them shows. All of them
run in one process against one server. PYLON_TEST_CLIENT_S lengthens the run of many clients.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from pylon import clientjs
from tests.support.browser import Browser
from tests.support.fault_proxy import FaultProxy
from tests.support.server import PylonServer

pytestmark = pytest.mark.usefixtures("processes")

HERE = Path(__file__).parent
CLIENT = Path(clientjs.__file__).parent
SCENARIOS = [each["name"] for each in json.loads((HERE / "scenarios.json").read_text())]
IN_BROWSERS_ONLY = {"queue_survives_the_page", "users_are_kept_apart"}
# Those that concern the browser's own parts: storage, sockets, fetch.
IN_CHROMIUM = [
    "window_comes_back_after_a_cut", "blocked_websocket_falls_back_to_the_event_stream",
    "offline_writes_wait_and_arrive_in_order", "queue_survives_the_page", "users_are_kept_apart",
]
SECONDS = float(os.environ.get("PYLON_TEST_CLIENT_S", "5"))
OLDEST_WITH_WEBSOCKET = 22
MANIFEST = {
    "name": "behaviour",
    "entities": [{
        "name": "Item",
        "fields": [
            {"name": "group", "type": "string"},
            {"name": "rank", "type": "int"},
            {"name": "text", "type": "string"},
            {"name": "owner", "type": "string", "default": {"$auth": "userId"}, "fixed": True},
        ],
        "indexes": [{"name": "by_group", "fields": ["group", "rank"]}],
        "crdt": False,
    }],
    "policies": [{
        "name": "items", "entity": "Item", "allowRead": "true",
        "allowInsert": 'auth.userId != null && data.text != "forbidden"',
        "allowUpdate": "auth.userId != null", "allowDelete": "auth.userId != null",
    }],
}


class Addresses(NamedTuple):
    """The addresses that the clients connect to."""

    url: str
    direct: str
    controls: list[int]

    def options(self, **more: Any) -> str:
        return json.dumps({**self._asdict(), "seconds": SECONDS, **more})


@pytest.fixture(scope="module")
def addresses(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Addresses]:
    """A server whose clients pass a proxy; that of the event stream has faults of its own."""
    folder = tmp_path_factory.mktemp("behaviour")
    server = PylonServer(folder, MANIFEST, {
        "PYLON_DEV_MODE": "true", "PYLON_STATIC_DIR": str(HERE), "PYLON_WS_WORKERS": "1",
    })
    targets = [("127.0.0.1", server.port + offset) for offset in range(3)]
    with FaultProxy(targets[:2]) as proxy, FaultProxy(targets[2:]) as streams:
        server.env["PYLON_WS_URL"] = f"ws://127.0.0.1:{proxy.ports[1]}"
        server.env["PYLON_SSE_URL"] = f"http://127.0.0.1:{streams.ports[0]}/events"
        # The page comes through the proxy; other ports are other origins to it.
        server.env["PYLON_CORS_ORIGIN"] = f"http://127.0.0.1:{proxy.ports[0]}"
        try:
            server.start()
            yield Addresses(
                f"http://127.0.0.1:{proxy.ports[0]}", f"http://127.0.0.1:{server.port}",
                [proxy.control_port, streams.control_port],
            )
        finally:
            server.close()


def run_node(script: Path, *arguments: str, timeout_s: float = 300) -> str:
    """Run a module with the machine's Node, and return what it has printed."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node is not installed")
    version = subprocess.run([node, "-v"], capture_output=True, text=True, check=True).stdout
    flags = ["--experimental-websocket"] if int(version[1:].split(".")[0]) < (
        OLDEST_WITH_WEBSOCKET) else []
    done = subprocess.run(
        [node, "--no-warnings", *flags, str(script), *arguments],
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def in_node(addresses: Addresses) -> dict[str, Any]:
    """The results of all scenarios in Node."""
    options = addresses.options(files=str(CLIENT))
    found: dict[str, Any] = json.loads(
        run_node(HERE / "behaviour.mjs", options, timeout_s=300 + SECONDS)
    )
    return found


@pytest.mark.parametrize(
    "name", [name for name in SCENARIOS if name not in IN_BROWSERS_ONLY]
)
def test_the_client_in_node_keeps_the_rules(name: str, in_node: dict[str, Any]) -> None:
    assert in_node[name]["ok"], in_node[name]["error"]


def test_the_client_in_chromium_keeps_the_rules(
    addresses: Addresses, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    with Browser(program("chromium", "chromium"), tmp_path / "browser") as browser:
        page = browser.open(f"{addresses.url}/app/behaviour.html")
        page.wait("the module", "typeof runScenarios === 'function'")
        page.run(
            "globalThis.found = null; runScenarios("
            f"{addresses.options(names=IN_CHROMIUM)}).then(all => {{ found = all }}); 0"
        )
        page.wait("all scenarios", "found !== null", 120)
        found = page.run("found")
        failed = {name: each["error"] for name, each in found.items() if not each["ok"]}
        assert failed == {}
        assert list(found) == IN_CHROMIUM
        assert page.console == []
