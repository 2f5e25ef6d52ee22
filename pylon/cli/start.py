"""`pylonctl start`: runs the supervisor, in the foreground as systemd expects it.

`pylon.cli.serve` forks the template process; what it does stands here. The imports stand inside the
functions. So `pylon` can be imported without `supervisor` and `workers`, and other verbs do not
load them.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

import click

from pylon.cli.output import json_flag
from pylon.cli.program_check import check_program
from pylon.cli.settings import chosen_env_file, dev_flag, read_settings
from pylon.config import Loaded
from pylon.settings import ENV_FILE_NAME


@click.command()
@click.option("--port", type=int, help="Sets PYLON_PORT.")
@click.option("--manifest", help="Sets PYLON_MANIFEST.")
@click.option("--db", help="Sets PYLON_DB_PATH.")
@click.option("--roles", help="Sets PYLON_ROLES, e.g. http,ws.")
@click.option("--detach", is_flag=True, help="Return when the server is ready; it runs on.")
@dev_flag
@json_flag
@click.pass_context
def start(
    ctx: click.Context, port: int | None, manifest: str | None, db: str | None,
    roles: str | None, detach: bool, dev: bool,
) -> None:
    """Serve until stopped. Refuses settings that are unsafe or cannot work: exit code 78."""
    flags = {
        "PYLON_PORT": None if port is None else str(port),
        "PYLON_MANIFEST": manifest, "PYLON_DB_PATH": db, "PYLON_ROLES": roles,
    }

    env_file = chosen_env_file(os.environ)

    def read() -> Loaded:
        """Read the settings; for a reload in another thread, which does not know the flags."""
        chosen = {} if env_file is None else {ENV_FILE_NAME: env_file}
        return read_settings(dev=dev, flags=flags, environ={**os.environ, **chosen})

    if detach:
        from pylon.cli.serve import start_detached

        ctx.exit(start_detached(read(), _arguments(flags, dev=dev)))
    from pylon.cli.serve import serve

    def check() -> None:
        check_program(flags, env_file, dev=dev)

    ctx.exit(serve(read(), read, be_template, check))


def _arguments(flags: Mapping[str, str | None], *, dev: bool) -> list[str]:
    """Return the arguments of `pylonctl start` for a process that reads the same settings."""
    options = {
        "--port": flags["PYLON_PORT"], "--manifest": flags["PYLON_MANIFEST"],
        "--db": flags["PYLON_DB_PATH"], "--roles": flags["PYLON_ROLES"],
        "--env-file": chosen_env_file(os.environ),
    }
    given = [word for name, value in options.items() if value is not None for word in (name, value)]
    return [*given, "--dev"] if dev else given


def be_template(fd: int, supervisor_pid: int) -> None:
    """Be the template process, in a fork (`supervisor.template.fork_template`)."""
    from workers.template import serve_forks

    serve_forks(fd, supervisor_pid)
