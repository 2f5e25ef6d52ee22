"""`pylonctl config`: prints every setting with its value and the origin of the value."""

from __future__ import annotations

from typing import Any

import click

from pylon.cli.output import json_flag, note, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.config import Loaded
from pylon.database_url import is_postgres_url
from pylon.settings import SETTINGS, Setting

_MASK = "********"


@click.command()
@click.option("--show-origin/--no-origin", default=True, help="Say where each value comes from.")
@dev_flag
@json_flag
def config(show_origin: bool, dev: bool) -> None:
    """Print every setting with its value and origin. Secrets are masked."""
    loaded = read_settings(dev=dev)
    for warning in loaded.warnings:
        note(f"warning: {warning}")
    result(
        {
            "settings": {s.env: _entry(s, loaded) for s in SETTINGS},
            "warnings": list(loaded.warnings),
        },
        "\n".join(_line(s, loaded, show_origin) for s in SETTINGS),
    )


def mask_secret(setting: Setting, raw: str | None) -> str | None:
    """Return the text of a value for printing; secrets are masked."""
    if not setting.secret or not raw:
        return raw
    if setting.shown is None or not is_postgres_url(raw):
        return _MASK
    return setting.shown(raw)


def _entry(setting: Setting, loaded: Loaded) -> dict[str, Any]:
    return {
        "value": mask_secret(setting, loaded.raw[setting.env]),
        "origin": loaded.origin[setting.env],
        "help": setting.help,
        "secret": setting.secret,
    }


def _line(setting: Setting, loaded: Loaded, show_origin: bool) -> str:
    value = mask_secret(setting, loaded.raw[setting.env])
    text = f"{setting.env}={'' if value is None else value}"
    return f"{text:<48} # {loaded.origin[setting.env]}" if show_origin else text
