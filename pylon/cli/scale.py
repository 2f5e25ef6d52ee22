"""`pylonctl scale http=4 ws=2`: other numbers of workers of a running server.

New workers start; when they are ready, those from before drain. The numbers last until the next
start; a reload keeps them as long as their settings do not change.
"""

from __future__ import annotations

import click

from pylon.cli.changes import follow_change
from pylon.cli.output import json_flag, note
from pylon.cli.running import require_running
from pylon.cli.settings import dev_flag, read_settings
from pylon.roles import ROLE_BY_NAME
from pylon.settings import SETTINGS

_SETTING_BY_FIELD = {setting.field: setting.env for setting in SETTINGS}


@click.command()
@click.argument("workers", nargs=-1, required=True, metavar="ROLE=NUMBER…")
@dev_flag
@json_flag
@click.pass_context
def scale(ctx: click.Context, workers: tuple[str, ...], dev: bool) -> None:
    """Change how many workers a role has, until the next start: http=4 ws=2."""
    wanted = dict(_parse(text) for text in workers)
    config = read_settings(dev=dev).config
    code = follow_change(config, require_running(config), "scale", workers=wanted)
    if code == 0:
        lines = [
            f"{_SETTING_BY_FIELD[ROLE_BY_NAME[role].workers_field]}={count}"
            for role, count in wanted.items()
        ]
        note(f"this lasts until the next start; to keep it, set {' and '.join(lines)}")
    ctx.exit(code)


def _parse(text: str) -> tuple[str, int]:
    role, _, number = text.partition("=")
    if role not in ROLE_BY_NAME or not number.isdigit():
        raise click.UsageError(f"{text!r}: expected a role and a number, for example http=4")
    return role, int(number)
