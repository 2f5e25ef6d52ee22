"""Commands of an installation: user, systemd and proxies of this machine.

Called by `pylon.install.apply` and `pylon.install.removal`. Each function that changes something is
called only if it is not a dry run.
"""

from __future__ import annotations

import grp
import pwd
import subprocess
from pathlib import Path
from typing import Final

from pylon.errors import InstallRefused
from pylon.install.options import CADDY, CADDYFILE, NGINX

_STEP_S: Final = 180.0
CHECKS: Final = {  # `caddy validate` would make the log file, as root
    NGINX: ["nginx", "-q", "-t"], CADDY: ["caddy", "adapt", "--config", f"/{CADDYFILE}"],
}


def run(*command: str) -> str:
    """Run a command and return its output.

    Raises:
        InstallRefused: it is missing, or it failed.
    """
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
            timeout=_STEP_S,
        )
    except FileNotFoundError:
        raise InstallRefused(f"{command[0]} is not installed") from None
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip().splitlines()
        raise InstallRefused(f"{' '.join(command)}: {' '.join(said[-3:])}")
    return done.stdout


def has_user(name: str) -> bool:
    """Whether the machine has a user of this name."""
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def ids_of(name: str) -> tuple[int, int]:
    """Return the uid of a user and the gid of the group of the same name."""
    user = pwd.getpwnam(name)
    try:
        return user.pw_uid, grp.getgrnam(name).gr_gid
    except KeyError:
        return user.pw_uid, user.pw_gid


def add_user(name: str) -> None:
    """Make the service's user, who can neither log in nor own a home folder of its own."""
    run("useradd", "--system", "--user-group", "--home-dir", "/var/lib/pylon", "--no-create-home",
        "--shell", "/usr/sbin/nologin", name)


def has_systemd() -> bool:
    """Whether systemd runs this machine."""
    return Path("/run/systemd/system").is_dir()


def is_active(unit: str) -> bool:
    """Whether systemd runs a unit."""
    done = subprocess.run(["systemctl", "is-active", "--quiet", unit], check=False)
    return done.returncode == 0
