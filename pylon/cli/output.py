"""Output of `pylonctl`: the `--json` flag, printing, and exit codes.

Results go to stdout; notes, questions and errors go to stderr. Exit codes (spec/http.md §8, and
sysexits): 0 ok, 1 error, 64 usage, 69 unavailable, 75 try again, 78 configuration. Called by every
verb and by `pylon.cli.main`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, Final, TypeVar

import click
import orjson

from pylon.errors import NotRunning, PylonError, StartDelayed, StartRefused

OK: Final = 0
ERROR: Final = 1
USAGE: Final = 64
UNAVAILABLE: Final = 69
TRY_AGAIN: Final = 75
CONFIG: Final = 78

F = TypeVar("F", bound=Callable[..., Any])


def json_flag(command: F) -> F:
    """Add `--json` to a verb. `pylonctl --json VERB` and `pylonctl VERB --json` are the same."""

    def remember(ctx: click.Context, _: click.Parameter, value: bool) -> None:
        if value:
            ctx.find_root().obj = {"json": True}

    option = click.option(
        "--json", is_flag=True, expose_value=False, is_eager=True, callback=remember,
        help="Print the result as JSON on stdout.",
    )
    return option(command)


def wants_json() -> bool:
    """Whether this run of `pylonctl` prints JSON."""
    ctx = click.get_current_context(silent=True)
    return bool(ctx and ctx.find_root().obj and ctx.find_root().obj.get("json"))


def result(body: dict[str, Any], text: str) -> None:
    """Print the result of a verb: `body` with `--json`, else `text`."""
    if wants_json():
        click.echo(orjson.dumps(body).decode())
    elif text:
        click.echo(text)


def ask_operator(question: str) -> str:
    """Print a question to stderr and return the answer in lower case.

    An empty line counts as "no". Returns "" if stdin is closed or at its end.
    """
    click.echo(question, nl=False, err=True)
    if sys.stdin is None:  # the shell closed it (`<&-`)
        return ""
    line = sys.stdin.buffer.readline().decode(errors="replace")
    return line.strip().lower() or ("no" if line else "")


def note(text: str) -> None:
    """Print one line of progress, or a warning, to stderr."""
    click.echo(f"pylonctl: {text}", err=True)


def failure_lines(error: PylonError) -> list[str]:
    """Return the lines of an error for a terminal: one, or one for each manifest diagnostic."""
    diagnostics = getattr(error, "diagnostics", ())
    if diagnostics:
        return [diagnostic.render() for diagnostic in diagnostics]
    return [error.message if error.hint is None else f"{error.message} ({error.hint})"]


def failure_body(error: PylonError) -> dict[str, Any]:
    """Return the JSON object of an error for `--json`."""
    body: dict[str, Any] = {"ok": False, **error.body()}
    diagnostics = getattr(error, "diagnostics", ())
    if diagnostics:
        body["diagnostics"] = [diagnostic.to_json() for diagnostic in diagnostics]
    problems = getattr(error, "problems", ())  # bad settings
    if problems:
        body["problems"] = list(problems)
    return body


def exit_code_of(error: PylonError) -> int:
    """Return the exit code of `pylonctl` for an error."""
    if isinstance(error, StartDelayed):
        return TRY_AGAIN
    if isinstance(error, StartRefused):
        return CONFIG
    if isinstance(error, NotRunning) or error.status == 503:
        return UNAVAILABLE
    return ERROR
