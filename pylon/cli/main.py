"""`pylonctl`: the group of verbs, and how an error becomes an exit code.

A verb's module is loaded when the verb is called (or the help lists it): the process of
`pylonctl start` becomes the supervisor, and keeps what it has loaded for as long as it serves.

Invariants: a `PylonError` never shows a traceback; a usage error exits with 64. Files that a
verb makes (exports, bundles, logs) are for their owner only.
"""

from __future__ import annotations

import importlib
import sys
from typing import Final

import click
import orjson

from pylon import __version__
from pylon.cli.output import (
    ERROR,
    USAGE,
    exit_code_of,
    failure_body,
    failure_lines,
    json_flag,
    note,
)
from pylon.data_dir import keep_private
from pylon.errors import PylonError

VERBS: Final = (  # in the order of the help; module and function are named alike
    "start", "dev", "stop", "status", "config", "check-config", "backup", "restore", "schema",
    "seed", "export", "import", "bench", "search", "shards", "replay", "explain", "version",
)


class _Verbs(click.Group):
    """The group, whose verbs are loaded one by one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        name = "import_" if cmd_name == "import" else cmd_name.replace("-", "_")
        verb: click.Command = getattr(importlib.import_module(f"pylon.cli.{name}"), name)
        return verb


@click.group(cls=_Verbs)
@click.version_option(__version__, prog_name="pylonctl")
@json_flag
def cli() -> None:
    """Pylon: one command gives an app a live backend."""


def main(args: list[str] | None = None) -> None:
    """Run `pylonctl` and exit. `args` default to the process's."""
    keep_private()
    args = sys.argv[1:] if args is None else args
    sys.exit(_run(args))


def _run(args: list[str]) -> int:
    try:
        code = cli.main(args, prog_name="pylonctl", standalone_mode=False)
    except click.UsageError as ex:
        ex.show()
        return USAGE
    except click.ClickException as ex:
        ex.show()
        return ERROR
    except click.Abort:
        note("aborted")
        return ERROR
    except PylonError as ex:
        for line in failure_lines(ex):
            note(line)
        if "--json" in args:
            click.echo(orjson.dumps(failure_body(ex)).decode())
        return exit_code_of(ex)
    except OSError as ex:
        note(str(ex))
        return ERROR
    return code if isinstance(code, int) else 0


if __name__ == "__main__":
    main()
