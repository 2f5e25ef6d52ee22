"""`pylonctl`: the group of verbs, and how an error becomes an exit code.

Invariants: a `PylonError` never shows a traceback; a usage error exits with 64.
"""

from __future__ import annotations

import sys

import click
import orjson

from pylon import __version__
from pylon.cli.backup import backup
from pylon.cli.bench import bench
from pylon.cli.check_config import check_config
from pylon.cli.config import config
from pylon.cli.dev import dev
from pylon.cli.explain import explain
from pylon.cli.export import export
from pylon.cli.import_ import import_
from pylon.cli.output import (
    ERROR,
    USAGE,
    exit_code_of,
    failure_body,
    failure_lines,
    json_flag,
    note,
)
from pylon.cli.restore import restore
from pylon.cli.schema import schema
from pylon.cli.search import search
from pylon.cli.seed import seed
from pylon.cli.start import start
from pylon.cli.status import status
from pylon.cli.stop import stop
from pylon.cli.version import version
from pylon.errors import PylonError


@click.group()
@click.version_option(__version__, prog_name="pylonctl")
@json_flag
def cli() -> None:
    """Pylon: one command gives an app a live backend."""


for verb in (
    start, dev, stop, status, config, check_config, backup, restore, schema, seed, export, import_,
    bench, search, explain, version,
):
    cli.add_command(verb)


def main(args: list[str] | None = None) -> None:
    """Run `pylonctl` and exit. `args` default to the process's."""
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
