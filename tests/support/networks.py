"""Network namespaces: a machine of its own for a process, and a cable to it that can be cut.

`Namespace` has two cables to this namespace, one to talk to its processes and one for their
connections to a database, so that a test can cut the second alone. Needs root and `ip` (Debian:
iproute2). Used by tests/nodes.
"""

from __future__ import annotations

import itertools
import os
import subprocess

_ids = itertools.count(1)


def missing_rights() -> str | None:
    """Return why there can be no namespaces here; None: there can."""
    name = f"pylon-try-{os.getpid()}"
    try:
        made = subprocess.run(
            ["ip", "netns", "add", name], capture_output=True, text=True, check=False, timeout=10
        )
    except FileNotFoundError:
        return "ip is not installed (apt-get install iproute2)"
    if made.returncode != 0:
        return f"no network namespaces here: {made.stderr.strip()}"
    _ip("netns", "del", name)
    return None


class Namespace:
    """See the module. `host`: of its processes; `gateway`: where they reach this namespace."""

    def __init__(self) -> None:
        number = next(_ids)
        part = os.getpid() % 250
        self.name = f"pylon-{os.getpid()}-{number}"
        _ip("netns", "add", self.name)
        self._cables: list[str] = []
        self.host, _ = self._lay(f"c{number}-{os.getpid()}", f"10.77.{part}", 4 * number)
        _, self.gateway = self._lay(f"d{number}-{os.getpid()}", f"10.78.{part}", 4 * number)
        _ip("-n", self.name, "link", "set", "lo", "up")

    def _lay(self, cable: str, network: str, base: int) -> tuple[str, str]:
        """Lay a cable; the addresses of its far end and of this one."""
        near, far = f"{network}.{base + 1}", f"{network}.{base + 2}"
        _ip("link", "add", cable, "type", "veth", "peer", "name", "eth", "netns", self.name)
        _ip("-n", self.name, "link", "set", "eth", "name", f"e{len(self._cables)}")
        _ip("addr", "add", f"{near}/30", "dev", cable)
        _ip("-n", self.name, "addr", "add", f"{far}/30", "dev", f"e{len(self._cables)}")
        _ip("link", "set", cable, "up")
        _ip("-n", self.name, "link", "set", f"e{len(self._cables)}", "up")
        self._cables.append(cable)
        return far, near

    def command(self, command: list[str]) -> list[str]:
        """Return the command that runs `command` within the namespace, as the same process."""
        return ["ip", "netns", "exec", self.name, *command]

    def cut(self) -> None:
        """Cut the cable to the gateway: packets vanish, and no connection ends."""
        _ip("link", "set", self._cables[1], "down")

    def mend(self) -> None:
        """Mend it."""
        _ip("link", "set", self._cables[1], "up")

    def close(self) -> None:
        """Remove the namespace. Its processes must have ended."""
        for cable in self._cables:
            subprocess.run(["ip", "link", "del", cable], check=False, timeout=10)
        _ip("netns", "del", self.name)


def _ip(*args: str) -> None:
    subprocess.run(["ip", *args], check=True, timeout=10)
