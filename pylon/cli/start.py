"""`pylonctl start`: run the supervisor, in the foreground as systemd wants it.

It executes the template process first, whose imports take longest, and imports the rest meanwhile
(`pylon.cli.serve`). It reaches up to `supervisor` inside the command: `pylon` stays importable
without it, and other verbs do not pay for it.
"""

from __future__ import annotations

import click

from pylon.cli.output import json_flag
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Loaded


@click.command()
@click.option("--port", type=int, help="Sets PYLON_PORT.")
@click.option("--manifest", help="Sets PYLON_MANIFEST.")
@click.option("--db", help="Sets PYLON_DB_PATH.")
@click.option("--detach", is_flag=True, help="Return when the server is ready; it runs on.")
@dev_flag
@json_flag
@click.pass_context
def start(
    ctx: click.Context, port: int | None, manifest: str | None, db: str | None,
    detach: bool, dev: bool,
) -> None:
    """Serve until stopped. Refuses what is unsafe or cannot work: exit code 78."""
    flags = {
        "PYLON_PORT": None if port is None else str(port),
        "PYLON_MANIFEST": manifest, "PYLON_DB_PATH": db,
    }

    def read() -> Loaded:
        return read_settings(dev=dev, flags=flags)

    if detach:
        from pylon.cli.serve import start_detached

        ctx.exit(start_detached(read()))
    from supervisor.template import start_template

    template = start_template()
    try:
        from pylon.cli.serve import serve

        ctx.exit(serve(read(), read, template))
    finally:
        template.stop()
