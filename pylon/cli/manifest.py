"""`pylonctl manifest`: from the manifest in Python to JSON, and back.

`build` writes what the app's Python declares; with `--check` it compares. `to-python` prints the
Python that declares the manifest of a JSON file. Developers and CI call it.
"""

from __future__ import annotations

from pathlib import Path

import click

from pylon.app_manifest import declared_manifest, declares_manifest, read_manifest_file
from pylon.app_manifest import read_python_manifest as check_python
from pylon.cli.generated import put_generated
from pylon.cli.output import json_flag, note
from pylon.cli.settings import dev_flag, read_settings
from pylon.dsl.source import python_source
from pylon.errors import StartRefused


@click.group()
def manifest() -> None:
    """Write the manifest of an app in Python as JSON, and that of a JSON file in Python."""


@manifest.command()
@click.option("--app", help="The Python file (default: PYLON_APP).")
@click.option("--out", help="The JSON file (default: PYLON_MANIFEST); - prints it.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the file differs.")
@dev_flag
@json_flag
@click.pass_context
def build(ctx: click.Context, app: str | None, out: str | None, check: bool, dev: bool) -> None:
    """Write the manifest that the app's Python declares into PYLON_MANIFEST."""
    config = read_settings(dev=dev).config
    source = app or config.app
    if source is None or not declares_manifest(source):
        raise StartRefused(
            f"PYLON_APP is {source}, which declares no manifest" if source else
            "PYLON_APP is not set", hint="name a Python file that imports app from pylon",
        )
    checked = check_python(source, strict=dev)
    for warning in checked.warnings:
        note(warning.render())
    text = declared_manifest(source).text
    target = out or config.manifest
    if target == "-":
        click.echo(text, nl=False)
        return
    put_generated(ctx, Path(target), text, check=check)


@manifest.command("to-python")
@click.argument("file", required=False)
@click.option("--out", help="The Python file; by default it is printed.")
@click.option("--check", is_flag=True, help="Write nothing; exit 1 if the file differs.")
@json_flag
@click.pass_context
def to_python(ctx: click.Context, file: str | None, out: str | None, check: bool) -> None:
    """Print the Python that declares the manifest of a JSON file (default: PYLON_MANIFEST)."""
    path = file or read_settings(dev=True).config.manifest
    text = python_source(read_manifest_file(path).source)
    if out is None:
        click.echo(text, nl=False)
        return
    put_generated(ctx, Path(out), text, check=check)
