"""`pylonctl uninstall`: removes what `pylonctl install-systemd` has installed."""

from __future__ import annotations

import os
from pathlib import Path

import click

from pylon.cli.output import ERROR, OK, ask_operator, json_flag, note, result, wants_json
from pylon.errors import InstallRefused
from pylon.install.removal import remove_installation

_YES = ("y", "yes")


@click.command()
@click.option("--delete-data", is_flag=True, help="Also the database, backups, settings and user.")
@click.option("--yes", is_flag=True, help="Do not ask before data are deleted.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option(
    "--root", type=click.Path(file_okay=False, path_type=Path), default=Path("/"), metavar="DIR",
    help="As it was given to install-systemd.",
)
@json_flag
@click.pass_context
def uninstall(
    ctx: click.Context, delete_data: bool, yes: bool, dry_run: bool, root: Path
) -> None:
    """Stop the units and remove what install-systemd has written. Data and settings stay."""
    root = root.absolute()
    if root == Path("/") and os.geteuid() != 0 and not dry_run:
        raise InstallRefused("Only root can uninstall from this machine", hint="sudo, or --dry-run")
    if delete_data and not yes and not dry_run:
        answer = ask_operator(f"Delete the database and the backups below {root}? [y/N] ")
        if answer not in _YES:
            result({"ok": False, "aborted": True}, "Aborted.")
            ctx.exit(OK if answer else ERROR)
    steps = []
    for step in remove_installation(root, delete_data=delete_data, dry_run=dry_run):
        steps.append(step.to_json())
        if not wants_json():
            click.echo(step.render())
    if dry_run:
        note("nothing was changed (--dry-run)")
    result({"ok": True, "dry_run": dry_run, "steps": steps}, "")
