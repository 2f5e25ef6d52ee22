"""`pylonctl check-config`: everything that would stop a start, all of it at once.

Settings, manifest and its policies, the import of the app, ports, the data directory. For people
and deploy scripts: a start checks the same itself.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import click

from pylon import descriptors
from pylon.backup.hold import is_held
from pylon.cli.output import CONFIG, failure_lines, json_flag, note, result, wants_json
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Config, refuse_unsafe
from pylon.errors import StartRefused
from pylon.manifest.load import load_manifest
from pylon.realtime.app_module import try_app_module

_PORT_SETTINGS = {
    "http": "PYLON_PORT", "ws": "PYLON_WS_PORT",
    "sse": "PYLON_SSE_PORT", "shards": "PYLON_SHARD_PORT",
}


@click.command("check-config")
@click.option("--no-ports", is_flag=True, help="Do not look whether the ports are free.")
@dev_flag
@json_flag
@click.pass_context
def check_config(ctx: click.Context, no_ports: bool, dev: bool) -> None:
    """Check settings, manifest, ports and data directory; list every problem. Exit 78."""
    loaded = read_settings(dev=dev)
    problems: list[str] = []
    try:
        refuse_unsafe(loaded.config)
    except StartRefused as ex:
        problems += failure_lines(ex)
    try:
        load_manifest(Path(loaded.config.manifest))
    except StartRefused as ex:
        problems += failure_lines(ex)
    if loaded.config.app is not None and Path(loaded.config.app).is_file():  # else said above
        try:
            try_app_module(loaded.config)
        except StartRefused as ex:
            problems += failure_lines(ex)
    # The ports of a server that runs from this data directory are taken by itself.
    if not no_ports and not is_held(Path(loaded.config.db_path)):
        problems += port_problems(loaded.config)
    problems += data_dir_problems(loaded.config)
    warnings = [*loaded.warnings, *descriptors.warnings()]
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
    """Ports that two roles share, that do not exist, or that somebody else listens on."""
    problems: list[str] = []
    seen: dict[int, str] = {}
    for role, setting in _PORT_SETTINGS.items():
        port = config.port_of(role)
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


def data_dir_problems(config: Config) -> list[str]:
    """Whether the database's folder can be written to, or made."""
    if config.in_memory:
        return []
    folder = config.data_dir
    nearest = next(path for path in (folder, *folder.parents) if path.exists())
    if not nearest.is_dir():
        return [f"PYLON_DB_PATH is {config.db_path}: {nearest} is not a folder"]
    if not os.access(nearest, os.W_OK | os.X_OK):
        return [f"PYLON_DB_PATH is {config.db_path}: {nearest} is not writable"]
    if Path(config.db_path).is_file() and not os.access(config.db_path, os.R_OK | os.W_OK):
        return [f"PYLON_DB_PATH is {config.db_path}: the file is not writable"]
    return []
