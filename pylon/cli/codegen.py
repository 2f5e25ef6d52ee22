"""`pylonctl codegen`: writes the types of the app for its clients.

It reads the manifest only, and needs no server. `--watch` writes again when a file of the manifest
changes; a manifest with errors is reported, and the file stays as it is. Developers and CI call it.
"""

from __future__ import annotations

import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from pylon.app_manifest import declared_manifest, declares_manifest, read_app_manifest
from pylon.cli.generated import put_generated, write_if_changed
from pylon.cli.output import failure_lines, json_flag, note
from pylon.cli.settings import dev_flag, read_settings
from pylon.codegen.targets import TARGETS, generate, parse_targets
from pylon.config import Config
from pylon.errors import StartRefused

_POLL_S: Final = 0.2


@click.command()
@click.argument("kind", type=click.Choice(list(TARGETS)))
@click.option("--out", help="The file; by default the text is printed.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the file differs.")
@click.option("--watch", is_flag=True, help="Write again whenever the manifest changes.")
@dev_flag
@json_flag
@click.pass_context
def codegen(
    ctx: click.Context, kind: str, out: str | None, check: bool, watch: bool, dev: bool
) -> None:
    """Write the types of the app: ts, python, openapi, jsonschema or manifest."""
    if (check or watch) and out is None:
        raise click.UsageError("--check and --watch need --out")
    config = read_settings(dev=dev).config
    if watch and out is not None:
        _watch(kind, config, Path(out))
    text = generate(kind, read_app_manifest(config), config)
    if out is None:
        click.echo(text, nl=False)
        return
    put_generated(ctx, Path(out), text, check=check)


def _watch(kind: str, config: Config, target: Path) -> None:
    known: object = None
    while True:
        stamps = _stamps(config)
        if stamps != known:
            known = stamps
            try:
                write_if_changed(target, generate(kind, read_app_manifest(config), config))
            except StartRefused as ex:
                for line in failure_lines(ex):
                    note(line)
        time.sleep(_POLL_S)


def write_targets(config: Config) -> None:
    """Write the targets of PYLON_CODEGEN, for `pylonctl dev`.

    Raises:
        StartRefused: the setting or the manifest has an error, or a file cannot be written.
    """
    if config.codegen is None:
        return
    try:
        targets = parse_targets(config.codegen)
    except ValueError as ex:
        raise StartRefused(f"PYLON_CODEGEN: {ex}") from ex
    manifest = read_app_manifest(config)
    for kind, path in targets:
        write_if_changed(Path(path), generate(kind, manifest, config))


def _stamps(config: Config) -> dict[str, int]:
    files: tuple[str, ...] = (config.manifest,)
    if declares_manifest(config.app):
        files = (str(config.app),)
        with suppress(StartRefused):
            files = declared_manifest(str(config.app)).files
    return {file: Path(file).stat().st_mtime_ns for file in files if Path(file).exists()}
