"""`pylonctl version`."""

from __future__ import annotations

import click

from pylon import __version__
from pylon.cli.output import json_flag, result


@click.command()
@json_flag
def version() -> None:
    """Print the version."""
    result({"version": __version__}, f"pylonctl {__version__}")
