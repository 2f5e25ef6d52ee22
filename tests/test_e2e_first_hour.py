"""A stranger follows docs/start.md: `pylonctl init`, `pylonctl dev`, and real Chromium windows.

Ann makes a private room, adds Bob, and sends a file; the network of one window is cut and comes
back; Eve sees none of it. The page is the starter `chat`, as `init` writes it.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support.browser import Browser, Page
from tests.support.ports import reserve_base_port
from tests.support.wait import WAIT_S, wait_until

CUT = {"offline": True, "latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
FILE_TEXT = "the map of the island"


@pytest.fixture
def address(processes: None, tmp_path: Path) -> Iterator[str]:
    """The address of a new app, which `pylonctl dev` serves."""
    def pylonctl(*args: str) -> list[str]:
        return [sys.executable, "-m", "pylon.cli.main", *args]

    port = reserve_base_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("PYLON_")}
    env |= {"PYLON_PORT": str(port), "PYLON_BIND": "127.0.0.1"}
    made = subprocess.run(
        pylonctl("init", "demo", "--template", "chat"), cwd=tmp_path, env=env,
        check=False, timeout=WAIT_S,
    )
    assert made.returncode == 0
    log = tmp_path / "dev.log"
    with log.open("wb") as output:
        server = subprocess.Popen(
            pylonctl("dev"), cwd=tmp_path / "demo", env=env, stdout=output, stderr=output
        )
    try:
        wait_until("the app is served", lambda: "demo is ready" in log.read_text())
        yield f"http://localhost:{port}/app/"
    finally:
        server.send_signal(signal.SIGTERM)
        assert server.wait(WAIT_S) == 0, log.read_text()


def come_in(page: Page, name: str) -> None:
    """Give a name, as the page asks for one."""
    page.wait("the page asks for a name", "document.querySelector('#who')?.open === true")
    page.run(f"document.querySelector('#name').value = '{name}';"
             "document.querySelector('#name-form button').click()")
    page.wait("the page is live",
              "!document.querySelector('#who').open"
              " && document.querySelector('#state').textContent === 'live'")


def say(page: Page, text: str) -> None:
    page.run(f"document.querySelector('#text').value = '{text}';"
             "document.querySelector('#send button').click()")


def sees(text: str) -> str:
    """Return a script: whether the messages on the screen have `text`."""
    return f"document.querySelector('#messages').textContent.includes('{text}')"


def test_a_stranger_has_a_private_chat_in_two_windows(
    address: str, program: Callable[[str, str], str], tmp_path: Path
) -> None:
    chromium = program("chromium", "chromium")
    with ExitStack() as stack:
        ann, bob, eve = (
            stack.enter_context(Browser(chromium, tmp_path / name)).open(address)
            for name in ("ann", "bob", "eve")
        )
        for page, name in ((ann, "Ann"), (bob, "Bob"), (eve, "Eve")):
            come_in(page, name)

        ann.run("document.querySelector('#room-name').value = 'island';"
                "document.querySelector('#room-private').click();"
                "document.querySelector('#new-room button').click()")
        ann.wait("Bob can be added",
                 "[...document.querySelector('#person').options].some(o => o.text === 'Bob')")
        ann.run("const list = document.querySelector('#person');"
                "list.value = [...list.options].find(o => o.text === 'Bob').value;"
                "document.querySelector('#add-member button').click()")
        bob.wait(
            "Bob has the room", "document.querySelector('#rooms').textContent.includes('island')"
        )
        bob.run("[...document.querySelectorAll('#rooms button')]"
                ".find(b => b.textContent.includes('island')).click()")

        ann.run("const files = new DataTransfer();"
                f"files.items.add(new File(['{FILE_TEXT}'], 'map.txt', {{ type: 'text/plain' }}));"
                "document.querySelector('#file').files = files.files")
        say(ann, "look at this")
        bob.wait("Bob has the message and the file",
                 sees("look at this") + " && document.querySelector('#messages button') !== null")
        ann.wait("both are there", "document.querySelectorAll('#members .here').length === 2")
        bob.run("document.querySelector('#text').dispatchEvent(new Event('input'))")
        ann.wait("Ann sees that Bob types",
                 "document.querySelector('#typing').textContent.includes('Bob')")
        bob.run("window.open = url => { window.opened = String(url); }")
        bob.run("document.querySelector('#messages button').click()")
        bob.wait("the file has an address", "typeof window.opened === 'string'")
        assert bob.run("fetch(window.opened).then(answer => answer.text())") == FILE_TEXT

        bob.command("Network.enable")
        bob.command("Network.emulateNetworkConditions", CUT)
        bob.run("dispatchEvent(new Event('offline'))")
        say(ann, "while you were away")
        ann.wait("Ann's message has its time", "!" + sees("waiting"))
        say(bob, "written without a network")
        bob.wait("Bob's message waits", sees("waiting"))
        assert not ann.run(sees("written without a network"))
        bob.command("Network.emulateNetworkConditions", CUT | {"offline": False})
        bob.run("dispatchEvent(new Event('online'))")
        ann.wait("Ann has what Bob wrote", sees("written without a network"))
        bob.wait("Bob has what he missed",
                 sees("while you were away") + " && !" + sees("waiting"))

        assert "island" not in eve.run("document.body.textContent")
        assert eve.run("document.querySelector('#state').textContent") == "live"
        assert ann.console == bob.console == eve.console == []
