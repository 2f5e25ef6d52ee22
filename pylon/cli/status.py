"""`pylonctl status`: prints the state of the server of this data directory.

The pidfile names the server; its control socket reports the state of its processes.
"""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.output import UNAVAILABLE, json_flag, result
from pylon.cli.running import Running, find_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import SystemClock

_ANSWER_S = 5.0


@click.command()
@click.option("--ready", is_flag=True, help="Also exit with 69 unless every role answers.")
@dev_flag
@json_flag
@click.pass_context
def status(ctx: click.Context, ready: bool, dev: bool) -> None:
    """Show whether a server runs, and the state of its processes. Exit 69 when none runs."""
    config = read_settings(dev=dev).config
    running = find_running(config)
    if running is None:
        result({"running": False, "db_path": config.db_path}, f"not running ({config.db_path})")
        ctx.exit(UNAVAILABLE)
    if not isinstance(running, Running):
        result({"running": True, "starting": True}, "starting")
        ctx.exit(UNAVAILABLE)
    answer = running.control(_ANSWER_S).ask("status")
    answer.pop("done", None)
    body: dict[str, Any] = {
        "running": True, "pid": running.pid, "ports": running.ports,
        "runtime_dir": running.runtime_dir, "started_at_s": running.started_at_s, **answer,
    }
    result(body, _text(running, answer))
    if ready and not answer.get("ready"):
        ctx.exit(UNAVAILABLE)


def _text(running: Running, answer: dict[str, Any]) -> str:
    up_s = max(0, int(SystemClock().wall_ns() / 1e9 - running.started_at_s))
    ports = ", ".join(f"{role} {port}" for role, port in running.ports.items())
    lines = [f"running: pid {running.pid}, for {up_s} s", f"ports: {ports}"]
    roles = answer.get("roles")
    if isinstance(roles, dict):
        lines += [f"{role}: {_role(state)}" for role, state in roles.items()]
    lines += [
        f"{key}: {value}" for key, value in answer.items()
        if isinstance(value, str | int | float) and key not in ("pid", "started_at_s")
    ]
    return "\n".join(lines)


def _role(state: object) -> str:
    if isinstance(state, dict):
        return ", ".join(f"{key} {value}" for key, value in state.items())
    return str(state)
