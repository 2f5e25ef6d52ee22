"""Changes of a running server, as an operator follows them: reload, restart, scale.

`follow_change` sends the command over the control socket and prints each step. The server may have
to begin anew; then the control socket closes, and `follow_change` waits until a server of a later
generation is ready on the same data directory. Called by `reload`, `restart`
and `scale`.
"""

from __future__ import annotations

import time
from typing import Any, Final

import click

from pylon.cli.output import ERROR, OK, UNAVAILABLE, note, result, wants_json
from pylon.cli.running import Running, find_running
from pylon.clock import SystemClock
from pylon.config import Config
from pylon.errors import PylonError

_POLL_S: Final = 0.05
_ANSWER_S: Final = 5.0
_PATIENCE_S: Final = 120.0  # beyond the drain, for a start that has to wait for its database

_clock = SystemClock()


def follow_change(config: Config, running: Running, command: str, **args: Any) -> int:
    """Have the server carry out a change. Print its steps, and return the exit code.

    Raises:
        PylonError: the server refused the change.
    """
    started_s = _clock.monotonic_s()
    last: dict[str, Any] = {}
    for last in running.control().call(command, **args):
        if not last.get("done"):
            _print_step(last)
    if last.get("ok") and last.get("step") != "done":
        _print_step(last)
        last = _await_generation(config, int(last["generation"]))
    took_s = round(_clock.monotonic_s() - started_s, 3)
    ok = bool(last.get("ok"))
    body = {**last, "ok": ok, "duration_s": took_s}
    body.pop("done", None)
    if ok:
        result(body, f"done: generation {last.get('generation')}, after {took_s:g} s")
        return OK
    result(body, "")
    note(f"{command} failed: {last.get('message')}")
    return UNAVAILABLE if last.get("step") == "not ready" else ERROR


def _print_step(line: dict[str, Any]) -> None:
    if not wants_json():
        rest = " ".join(f"{key}={value}" for key, value in line.items()
                        if key in ("kind", "workers"))
        click.echo(f"  {line['step']}{': ' + rest if rest else ''}")


def _await_generation(config: Config, generation: int) -> dict[str, Any]:
    """Wait until a server of this generation, or a later one, is ready. Return the last line."""
    until_s = _clock.monotonic_s() + config.drain_delay_s + config.drain_s + _PATIENCE_S
    why = "the server that drained did not come back; its log says why"
    while _clock.monotonic_s() < until_s:
        running = find_running(config)
        if isinstance(running, Running):
            try:
                status = running.control(_ANSWER_S).ask("status")
            except PylonError as ex:  # it does not listen yet, or no longer
                why = ex.message
            else:
                if status.get("generation", 0) >= generation and status.get("ready"):
                    return {"step": "done", "ok": True, "generation": status["generation"]}
        time.sleep(_POLL_S)
    return {"step": "not ready", "ok": False, "message": why}
