"""`pylonctl install-systemd`: installs the server on this machine, for systemd.

`pylon.install` does the work; the texts of the manual page and of the shells come from click.
"""

from __future__ import annotations

import os
from pathlib import Path

import click
from dotenv import dotenv_values

from pylon.cli.completion import PLACES, completion_script
from pylon.cli.man import PLACE, manual_page
from pylon.cli.output import json_flag, note, result, wants_json
from pylon.errors import InstallRefused
from pylon.install.apply import Installation
from pylon.install.options import ENV_FILE, MANIFEST, PROXIES, InstallOptions


@click.command("install-systemd")
@click.option("--domain", metavar="NAME", help="The name that clients use, e.g. api.example.com.")
@click.option("--origin", metavar="URL", help="The web app's origin. Default: https://DOMAIN.")
@click.option("--proxy", type=click.Choice(PROXIES), default="none", help="Write its site too.")
@click.option(
    "--manifest", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The app's manifest, to copy.",
)
@click.option(
    "--app", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The app's Python file with the manifest; it stays in its place.",
)
@click.option("--user", default="pylon", show_default=True, help="The service's user.")
@click.option("--start", is_flag=True, help="Also enable and start the units.")
@click.option("--dry-run", is_flag=True, help="Say what would be done, and change nothing.")
@click.option(
    "--root", type=click.Path(file_okay=False, path_type=Path), default=Path("/"), metavar="DIR",
    help="Write the files below DIR, for an image or a package: no user, no systemctl.",
)
@json_flag
@click.pass_context
def install_systemd(
    ctx: click.Context, domain: str | None, origin: str | None, proxy: str,
    manifest: Path | None, app: Path | None, user: str, start: bool, dry_run: bool, root: Path,
) -> None:
    """Install the server on this machine: user, folders, units, env file, and a proxy's site.

    It may run again, and then does what is missing. Files that were edited stay as they are.
    """
    if manifest is not None and app is not None:
        raise click.UsageError("give --manifest or --app, not both")
    options = InstallOptions(
        domain=domain, origin=origin, proxy=proxy, user=user, manifest=manifest, app=app,
        root=root.absolute(), pages=_pages(ctx.find_root()),
    )
    if options.on_this_machine and os.geteuid() != 0 and not dry_run:
        raise InstallRefused("Only root can install on this machine", hint="sudo, or --dry-run")
    if start and not options.on_this_machine:
        raise click.UsageError("--start is for this machine, and --root for another place")
    manifest_path = options.place(MANIFEST)
    has_app = app is not None or _names_app(options.place(ENV_FILE))
    if start and manifest is None and not has_app and not manifest_path.exists():
        raise InstallRefused(
            f"{manifest_path} is missing",
            hint="--manifest FILE copies yours, --app FILE names a Python file that declares it",
        )
    steps = []
    for step in Installation(options, dry_run=dry_run).run(start=start):
        steps.append(step.to_json())
        if not wants_json():
            click.echo(step.render())
    todo = []
    if not has_app and not manifest_path.exists() and not (dry_run and manifest is not None):
        todo.append(f"put the app's manifest at {manifest_path}")
    if not start:
        todo.append(f"see to {options.place(ENV_FILE)}")
        todo.append("pylonctl install-systemd --start")
    if dry_run:
        todo = ["nothing was changed (--dry-run)"]
    for line in todo:
        note(f"next: {line}" if not dry_run else line)
    result({"ok": True, "dry_run": dry_run, "steps": steps, "next": todo}, "")


def _names_app(env_file: Path) -> bool:
    """Whether an env file of an earlier run names the app's Python file."""
    try:
        return bool(dotenv_values(env_file).get("PYLON_APP"))
    except OSError:
        return False


def _pages(root: click.Context) -> dict[str, str]:
    scripts = {path: completion_script(root.command, shell) for shell, path in PLACES.items()}
    return {PLACE: manual_page(root), **scripts}
