"""`pylonctl stop`: drains a running server and prints each step as it happens.

It sends the request over the control socket. If the supervisor does not answer, it sends SIGTERM
to the pid of the pidfile. Then it waits until the supervisor releases the data directory, which is
the supervisor's last step.
"""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import click

from pylon.cli.output import ERROR, OK, UNAVAILABLE, json_flag, note, result, wants_json
from pylon.cli.running import Running, require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import SystemClock
from pylon.data_dir_lock import is_locked
from pylon.errors import NotRunning

_clock = SystemClock()
_POLL_S = 0.05
_GRACE_S = 30.0  # beyond the drain's own deadline, before `stop` gives up waiting


@click.command()
@click.option("--timeout", "timeout_s", type=click.FloatRange(0.1), help="Seconds to wait at most.")
@dev_flag
@json_flag
@click.pass_context
def stop(ctx: click.Context, timeout_s: float | None, dev: bool) -> None:
    """Drain and stop the server of this data directory; wait until it has ended."""
    config = read_settings(dev=dev).config
    running = require_running(config)
    wait_s = timeout_s or config.drain_delay_s + config.drain_s + _GRACE_S
    started_s = _clock.monotonic_s()
    steps = _drain(running, wait_s)
    ended = _await_end(Path(config.db_path), started_s + wait_s)
    took_s = round(_clock.monotonic_s() - started_s, 3)
    body: dict[str, Any] = {
        "ok": ended, "pid": running.pid, "duration_s": took_s, "steps": steps,
    }
    if ended:
        code = steps[-1].get("exit_code", OK) if steps else OK
        how = "" if code == OK else f"; the drain was cut short (exit code {code})"
        body["exit_code"] = code
        result(body, f"stopped (pid {running.pid}) after {took_s:g} s{how}")
        ctx.exit(OK if code == OK else ERROR)
    result(body, "")
    note(
        f"pid {running.pid} still runs after {took_s:g} s; "
        f"a second SIGTERM cuts the drain short: kill {running.pid}"
    )
    ctx.exit(UNAVAILABLE if not steps else ERROR)


def _drain(running: Running, wait_s: float) -> list[dict[str, Any]]:
    """Request the drain and print its steps. Return the steps received."""
    steps: list[dict[str, Any]] = []
    try:
        for answer in running.control(timeout_s=wait_s).call("stop"):
            if "step" in answer:
                steps.append(answer)
                if not wants_json():
                    click.echo(step_line(answer))
    except NotRunning as ex:
        if steps:  # the supervisor closed the socket at the end of its drain
            return steps
        note(f"{ex.message}; sending SIGTERM to pid {running.pid}")
        try:
            os.kill(running.pid, signal.SIGTERM)
        except ProcessLookupError:
            return steps
    return steps


def step_line(answer: dict[str, Any]) -> str:
    """Return one drain step as a line of text: its name and its other fields."""
    rest = " ".join(
        f"{key}={value}" for key, value in answer.items() if key not in ("step", "done", "ok")
    )
    return f"  {answer['step']}{': ' + rest if rest else ''}"


def _await_end(db_path: Path, deadline_s: float) -> bool:
    while is_locked(db_path):
        if _clock.monotonic_s() > deadline_s:
            return False
        time.sleep(_POLL_S)
    return True
