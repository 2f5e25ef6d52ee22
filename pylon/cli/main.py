"""`pylonctl`: finds and runs a verb, and converts errors to messages and exit codes.

It imports the module of a verb only when the operator calls the verb or the help lists it. The
process of `pylonctl start` becomes the supervisor, which keeps every loaded module in memory.

Invariants: a `PylonError` never prints a traceback; a usage error exits with 64. Only the owner
may read the files that a verb makes (exports, bundles, logs).
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
from pylon.cli.settings import env_file_flag
from pylon.data_dir import keep_private
from pylon.errors import PylonError

VERBS: Final = (  # in the order of the help; module and function are named alike
    "start", "dev", "stop", "restart", "reload", "scale",
    "status", "config", "check-config", "backup", "restore", "migrate",
    "doctor", "top", "metrics", "logs", "support-bundle",
    "manifest", "codegen", "init", "data",
    "schema", "seed", "client", "export", "import", "bench", "search", "shards", "session",
    "user", "key", "jwt", "secret", "audit", "files", "replay", "docs", "explain",
    "explain-query", "policy", "mail", "install-systemd", "uninstall", "completion", "man",
    "version",
)


class _Verbs(click.Group):
    """The group of verbs. It imports each verb when it is needed."""

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
@env_file_flag
@json_flag
def cli() -> None:
    """Pylon: one command gives an app a live backend."""


def main(args: list[str] | None = None) -> None:
    """Run `pylonctl` and exit. `args` default to those of the process."""
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
