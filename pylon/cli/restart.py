"""`pylonctl restart`: has a running server execute the program on disk anew, in the same process.

So it takes over new code and every setting. The program on disk checks itself first; if it refuses,
nothing has changed. Then the server drains, and its ports stay open: connections wait until the
new program serves. This process waits until it is ready.
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
def restart(ctx: click.Context, dev: bool) -> None:
    """Restart with the program on disk, while the ports stay open and requests wait."""
    config = read_settings(dev=dev).config
    ctx.exit(follow_change(config, require_running(config), "restart"))
