"""Readiness announcement: prints that a server is ready.

Dev mode prints the URLs; `--json` prints one JSON object. A start is complete when the processes
of every role answer. The supervisor's control socket reports that (`status`). Called by
`pylon.cli.serve`: for `start` from a thread beside the supervisor, and for `start --detach`.
"""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from pylon.app_manifest import app_file
from pylon.cli.output import note, result, wants_json
from pylon.cli.running import Running, find_running
from pylon.config import Config
from pylon.errors import PylonError
from pylon.manifest.model import Manifest
from pylon.roles import PORT_BY_ROLE, ROLE_BY_NAME
from pylon.storage.factory import open_store

_POLL_S = 0.05
_ANSWER_S = 5.0


def is_ready(config: Config, pid: int) -> bool:
    """Whether the supervisor `pid` runs on this data directory and all its roles answer."""
    running = find_running(config)
    if not isinstance(running, Running) or running.pid != pid:
        return False
    try:
        return bool(running.control(_ANSWER_S).ask("status").get("ready"))
    except PylonError:  # the supervisor does not listen yet, or no longer
        return False


def announce_when_ready(config: Config, manifest: Manifest, pid: int) -> None:
    """Wait for readiness, then announce it. Runs in a daemon thread and ends with the process."""
    while not is_ready(config, pid):
        time.sleep(_POLL_S)
    announce(config, manifest)


def announce(config: Config, manifest: Manifest) -> None:
    """Print that the server is ready."""
    running = find_running(config)
    if isinstance(running, Running):  # sockets of systemd may have other ports than the settings
        ports: dict[str, Any] = {
            port.field: running.ports.get(role, config.port_of(role))
            for role, port in PORT_BY_ROLE.items()
        }
        config = replace(config, **ports)
    if wants_json():
        result(start_body(config, manifest), "")
    elif config.dev_mode:
        for line in dev_lines(config, manifest):
            note(line)


def start_body(config: Config, manifest: Manifest) -> dict[str, Any]:
    """Return the `START_OK` object of spec/http.md §8."""
    return {
        "code": "START_OK", "name": manifest.name, "version": manifest.version,
        "entry": app_file(config), "port": config.port,
        "db_path": ":memory:" if config.in_memory else config.db_path,
        "backend": open_store(config).name,
    }


def urls(config: Config) -> dict[str, str]:
    """Return the URL of each enabled role by its name, as this machine reaches it."""
    local = ("0.0.0.0", "::", "127.0.0.1", "::1")  # nosec B104 # it is printed, nothing is bound
    host = "localhost" if config.bind in local else config.bind
    if ":" in host:
        host = f"[{host}]"
    return {
        role: f"{port.scheme}://{host}:{config.port_of(role)}{port.url_path.rstrip('/')}"
        for role, port in PORT_BY_ROLE.items()
        if config.workers_of(role)
    }


def dev_lines(config: Config, manifest: Manifest) -> list[str]:
    """Return the lines for a developer: the URLs, the admin header and a request to try."""
    found = urls(config)
    lines = [f"{manifest.name} is ready"]
    lines += [f"  {ROLE_BY_NAME[role].title:<10} {url}" for role, url in found.items()]
    if "http" not in found:
        return lines
    if config.static_dir is not None and Path(config.static_dir).is_dir():
        lines.append(f"  {'App':<10} {found['http']}/app/")
    lines.append("  Admin      Authorization: Bearer $PYLON_ADMIN_TOKEN (it is in .env)")
    if manifest.entities:
        entity = manifest.entities[0].name
        for candidate in manifest.entities:
            if candidate.name != manifest.auth.user_entity:
                entity = candidate.name
                break
        lines.append(f"  Try        curl {found['http']}/api/entities/{entity}")
    return lines
