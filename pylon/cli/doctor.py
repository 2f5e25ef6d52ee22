"""`pylonctl doctor`: checks what can be wrong around a server, and says what to do.

It changes nothing. Some checks ask the running server of this data directory; `--url` probes the
proxies in front. `pylon.doctor` has the checks.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from pylon.cli.check_config import port_problems
from pylon.cli.metrics import read_samples
from pylon.cli.output import json_flag, result
from pylon.cli.running import Running, find_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import NS_PER_S, SystemClock
from pylon.config import Config
from pylon.doctor import database, machine, node, proxies
from pylon.doctor.findings import ERROR, OK, WARNING, Finding, exit_code
from pylon.doctor.node import NodeState
from pylon.errors import PylonError
from pylon.storage.factory import open_store

_ANSWER_S: Final = 10.0
_MARKS: Final = {"ok": "ok     ", "note": "note   ", "warning": "WARNING", "error": "ERROR  "}


@click.command()
@click.option("--url", help="The URL that clients use: probe the proxies in front of the server.")
@click.option("--watch", "watch_s", type=click.FloatRange(0, 3_600), default=0.0,
              help="Seconds to keep a socket open, to find timeouts of proxies (with --url).")
@click.option("--all", "shows_all", is_flag=True, help="Also print what is as it should be.")
@dev_flag
@json_flag
@click.pass_context
def doctor(
    ctx: click.Context, url: str | None, watch_s: float, shows_all: bool, dev: bool
) -> None:
    """Check machine, files, database and proxies. Exit 0: sound, 1: warnings, 2: errors."""
    config = read_settings(dev=dev).config
    findings = list(find_all(config, url, watch_s))
    code = exit_code(findings)
    body = {"ok": code == 0, "findings": [each.to_json() for each in findings]}
    result(body, _text(findings, shows_all=shows_all))
    ctx.exit(code)


def find_all(config: Config, url: str | None = None, watch_s: float = 0.0) -> Iterator[Finding]:
    """Run every check."""
    running = find_running(config)
    state: NodeState | None = None
    if isinstance(running, Running):
        try:
            control = running.control(_ANSWER_S)
            status = control.ask("status")
            samples = read_samples(control.ask("metrics", format="text")["body"])
            values: dict[str, float] = {}
            for sample in samples:
                values[sample.name] = max(sample.value, values.get(sample.name, 0.0))
            state = NodeState(running.pid, running.ports, status, values)
        except PylonError as ex:
            yield Finding(
                ERROR, "processes.control", f"the server (pid {running.pid}) does not answer: "
                f"{ex.message}", "nothing can be said of its processes",
                "look at its log (pylonctl logs); systemctl restart pylon",
            )
    yield from machine.check_limits(None if state is None else state.pid)
    if not config.in_memory:
        yield from machine.check_disk(config, _used_bytes(config))
    yield from machine.check_clock(config, SystemClock())
    yield from node.check_user(config)
    yield from node.check_files(config)
    yield from node.check_ports(
        config, state, [] if running is not None else port_problems(config))
    yield from node.check_versions(state, None if config.database_url else _sqlite_version(config))
    yield from node.check_processes(state)
    yield from node.check_wal(config, state)
    yield from database.check_database(config)
    if not config.in_memory:
        now_s = SystemClock().wall_ns() / NS_PER_S
        yield from node.check_backup(config, state, now_s)
    if url is not None:
        yield from proxies.check_proxies(config, url, watch_s)


def _used_bytes(config: Config) -> int:
    names = (config.db_path, config.db_path + "-wal")
    return sum(Path(name).stat().st_size for name in names if Path(name).is_file())


def _sqlite_version(config: Config) -> str:
    return open_store(config).engine_version.removeprefix("SQLite ")


def _text(findings: list[Finding], *, shows_all: bool) -> str:
    lines = []
    for each in findings:
        if each.level == OK and not shows_all:
            continue
        lines.append(f"{_MARKS[each.level]} {each.check}: {each.what}")
        lines += [f"        why: {each.why}"] * bool(each.why)
        lines += [f"        do:  {each.remedy}"] * bool(each.remedy)
    counts = {level: sum(each.level == level for each in findings) for level in (ERROR, WARNING)}
    lines.append(f"{len(findings)} checks: {counts[ERROR]} errors, {counts[WARNING]} warnings")
    return "\n".join(lines)
