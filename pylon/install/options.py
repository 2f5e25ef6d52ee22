"""Options of an installation, and the paths that it uses.

Invariants: every path is below `root`, which is `/` unless an image or a package is made. Called by
`pylon.install` and `pylon.cli`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

NGINX: Final = "nginx"
CADDY: Final = "caddy"
PROXIES: Final = (NGINX, CADDY, "none")

SOCKET_UNITS: Final = ("pylon.socket", "pylon-ws.socket", "pylon-sse.socket", "pylon-shards.socket")
SERVICE_UNITS: Final = ("pylon.service", "pylon-backup.timer", "pylon-drill.timer")
UNIT_FILES: Final = (
    *SOCKET_UNITS, *SERVICE_UNITS, "pylon-backup.service", "pylon-drill.service"
)
UNITS_FOLDER: Final = "etc/systemd/system"
ENV_FILE: Final = "etc/pylon/pylon.env"
MANIFEST: Final = "etc/pylon/pylon.manifest.json"
PUBLIC_FOLDER: Final = "public"  # beside an app's file: its page
# From the service: its unit has ProtectHome and PrivateTmp.
HIDDEN_FOLDERS: Final = ("/home", "/root", "/run/user", "/tmp", "/var/tmp")  # nosec B108 # names only
DATA_FOLDERS: Final = ("var/lib/pylon", "var/lib/pylon-backup")
COMMAND: Final = "usr/local/bin/pylonctl"
SITES: Final = {NGINX: "etc/nginx/conf.d/pylon.conf", CADDY: "etc/caddy/pylon.caddy"}
CADDYFILE: Final = "etc/caddy/Caddyfile"


@dataclass(frozen=True, slots=True)
class InstallOptions:
    """The parts to install, and their places."""

    domain: str | None = None  # the name that clients use; only a new env file needs it
    origin: str | None = None  # of the web app; None: https://<domain>
    proxy: str = "none"
    user: str = "pylon"
    manifest: Path | None = None  # the app's, to copy
    app: Path | None = None  # the app's Python file, which declares the manifest; it is not copied
    root: Path = Path("/")
    pages: Mapping[str, str] = field(default_factory=dict)  # further texts by path: manual, shells
    program: Path = Path(sys.prefix) / "bin" / "pylonctl"

    @property
    def on_this_machine(self) -> bool:
        """Whether users, owners and systemd are those of this machine."""
        return self.root == Path("/")

    def place(self, path: str) -> Path:
        """Return a path of the table above, below `root`."""
        return self.root / path
