"""What the verbs of `pylonctl` share: the `--json` flag, printing, and exit codes.

Exit codes (spec/http.md §8, and sysexits): 0 ok, 1 error, 64 usage, 69 unavailable, 75 try again,
78 configuration.
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
    """Give a verb `--json`; `pylonctl --json VERB` and `pylonctl VERB --json` are the same."""

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
    """Print a verb's result: `body` as JSON, or `text` for people."""
    if wants_json():
        click.echo(orjson.dumps(body).decode())
    elif text:
        click.echo(text)


def ask(question: str) -> str:
    """The answer to a question on stderr, in lower case; "" if nobody answers."""
    click.echo(question, nl=False, err=True)
    if sys.stdin is None:  # the caller closed it (`<&-`)
        return ""
    line = sys.stdin.buffer.readline().decode(errors="replace")
    return line.strip().lower() or ("no" if line else "")


def note(text: str) -> None:
    """Progress and warnings: stderr, one line."""
    click.echo(f"pylonctl: {text}", err=True)


def failure_lines(error: PylonError) -> list[str]:
    """How an error reads on a terminal: one line; a bad manifest, one for each diagnostic."""
    diagnostics = getattr(error, "diagnostics", ())
    if diagnostics:
        return [diagnostic.render() for diagnostic in diagnostics]
    return [error.message if error.hint is None else f"{error.message} ({error.hint})"]


def failure_body(error: PylonError) -> dict[str, Any]:
    """How an error reads with `--json`."""
    body: dict[str, Any] = {"ok": False, **error.body()}
    diagnostics = getattr(error, "diagnostics", ())
    if diagnostics:
        body["diagnostics"] = [diagnostic.to_json() for diagnostic in diagnostics]
    problems = getattr(error, "problems", ())  # bad settings
    if problems:
        body["problems"] = list(problems)
    return body


def exit_code_of(error: PylonError) -> int:
    """The exit code that an error ends `pylonctl` with."""
    if isinstance(error, StartDelayed):
        return TRY_AGAIN
    if isinstance(error, StartRefused):
        return CONFIG
    if isinstance(error, NotRunning) or error.status == 503:
        return UNAVAILABLE
    return ERROR
