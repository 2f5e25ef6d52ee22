"""`pylonctl reload`: has a running server take over its settings, manifest, policies and app.

The server reads and checks everything anew, and refuses what it cannot use or what needs a
restart; then nothing has changed. `supervisor.generations` has the rules. If the supervisor begins
anew, its control socket closes, and this process waits until the next run is ready.
"""

from __future__ import annotations

import click

from pylon.cli.changes import follow_change
from pylon.cli.output import json_flag
from pylon.cli.running import require_running
from pylon.cli.settings import dev_flag, read_settings


@click.command()
@dev_flag
@json_flag
@click.pass_context
def reload(ctx: click.Context, dev: bool) -> None:
    """Take over changed settings, manifest, policies and app code without a restart."""
    config = read_settings(dev=dev).config
    ctx.exit(follow_change(config, require_running(config), "reload"))
