"""`pylonctl check-config`: lists every problem that would stop a start.

It checks the settings, the manifest with its policies, the import of the app, the data directory,
the schema changes that the database needs, the seed file and the ports. The start itself runs the
same checks (`pylon.startup`). Invariant: it changes nothing. Operators and deploy scripts call it.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import cast

import click

from pylon.cli.output import CONFIG, failure_lines, json_flag, note, result, wants_json
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Config, Loaded
from pylon.data_dir import data_dir_problems as data_dir_problems
from pylon.data_dir import data_dir_warnings
from pylon.data_dir_lock import is_locked
from pylon.errors import SettingsRefused, StartRefused
from pylon.manifest.model import Manifest
from pylon.roles import PORT_BY_ROLE
from pylon.runtime import fd_budget
from pylon.startup import find_problems, read_manifest, start_warnings


@click.command("check-config")
@click.option("--no-ports", is_flag=True, help="Do not look whether the ports are free.")
@dev_flag
@json_flag
@click.pass_context
def check_config(ctx: click.Context, no_ports: bool, dev: bool) -> None:
    """Check settings, manifest, schema, data directory and ports; list every problem. Exit 78."""
    problems: list[str] = []
    try:
        loaded = read_settings(dev=dev)
    except SettingsRefused as ex:
        problems += ex.problems
        loaded = cast(Loaded, ex.loaded)
    config = loaded.config
    manifest: Manifest | StartRefused
    try:
        manifest = read_manifest(config)
    except StartRefused as ex:
        manifest = ex
    for refusal in find_problems(loaded, os.environ, manifest):
        problems += failure_lines(refusal)
    # A server that runs on this data directory holds its own ports.
    try:
        if not no_ports and not is_locked(Path(config.db_path)):
            problems += port_problems(config)
    except StartRefused as ex:  # the pidfile
        problems += failure_lines(ex)
    except OSError as ex:
        problems.append(f"PYLON_DB_PATH is {config.db_path}: {ex.strerror or ex}")
    problems = list(dict.fromkeys(problems))
    warnings = [
        *start_warnings(loaded, manifest if isinstance(manifest, Manifest) else None),
        *data_dir_warnings(config), *fd_budget.warnings(),
    ]
    for warning in warnings:
        note(f"warning: {warning}")
    if not wants_json():
        for problem in problems:
            note(problem)
    result(
        {"ok": not problems, "problems": problems, "warnings": warnings},
        "" if problems else "the configuration is fine",
    )
    if problems:
        ctx.exit(CONFIG)


def port_problems(config: Config) -> list[str]:
    """Return a line for each port that two roles share, that is too large, or that is in use."""
    problems: list[str] = []
    seen: dict[int, str] = {}
    for role, entry in PORT_BY_ROLE.items():
        setting, port = entry.setting, config.port_of(role)
        if config.workers_of(role) == 0:
            continue
        if port > 65535:
            problems.append(f"the {role} port would be {port}: set {setting} or lower PYLON_PORT")
            continue
        if port in seen:
            problems.append(f"{setting} is {port}, which the {seen[port]} port is too")
            continue
        seen[port] = role
        failure = _bind_failure(config.bind, port)
        if failure is not None:
            problems.append(f"{setting}: {config.bind}:{port} ({role}) cannot be bound: {failure}")
    return problems


def _bind_failure(address: str, port: int) -> str | None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((address, port))
    except OSError as ex:
        return ex.strerror or str(ex)
    return None
