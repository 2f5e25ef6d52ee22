"""Settings of the verbs: reads flags, the environment and, for `--dev`, `.env` files.

Invariants: a flag wins over the environment, the environment over `.env.local`, and that over
`.env`. A nearer folder wins over one further up. `Loaded.origin` names the source of each value.
Only `--dev` reads `.env` files; on a server the EnvironmentFile of the unit replaces them. Called
by every verb that needs settings.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from pylon.config import Loaded, load
from pylon.dotenv import DotenvInvalid, parse_dotenv
from pylon.errors import StartRefused

DOTENV_NAMES: Final = (".env.local", ".env")  # the first wins

_DOTENV: Final = ".env files"
_MODE: Final = "PYLON_DEV_MODE"

F = TypeVar("F", bound=Callable[..., Any])


def dev_flag(command: F) -> F:
    """Add `--dev` to a verb: it then reads the settings as `pylonctl dev` does."""
    option = click.option(
        "--dev", is_flag=True, help="Settings as `pylonctl dev` has them: dev mode, .env files."
    )
    return option(command)


def dotenv_files(start: Path) -> list[Path]:
    """Return the `.env` files of a folder and its parents, by descending precedence."""
    start = start.absolute()
    candidates = [folder / name for folder in (start, *start.parents) for name in DOTENV_NAMES]
    return [path for path in candidates if path.is_file()]


def read_settings(
    *,
    dev: bool = False,
    flags: Mapping[str, str | None] | None = None,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
) -> Loaded:
    """Load the settings of this run.

    Args:
        dev: read `.env` files, and set dev mode unless a source sets PYLON_DEV_MODE.
        flags: values from the command line by variable name; None: the flag was not given.
        environ: replaces the environment of the process.
        folder: where to look for `.env` files, in place of the current folder.

    Raises:
        StartRefused: a value, or a `.env` file, cannot be read.
    """
    environ = dict(os.environ if environ is None else environ)
    origins: dict[str, str] = {}
    dotenv: dict[str, str] = {}
    if dev:
        for path in dotenv_files(folder or Path.cwd()):
            for name, value in _read_dotenv(path).items():
                if name not in dotenv:
                    dotenv[name] = value
                    origins[name] = str(path)
        if not any(source.get(_MODE) for source in (environ, dotenv)):
            environ.pop(_MODE, None)  # an empty value counts as not set
            dotenv[_MODE] = "1"
            origins[_MODE] = "pylonctl dev"
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    loaded = load({**environ, **given}, dotenv, _DOTENV)
    named = {
        env: "command line" if env in given and origin == "environment"
        else origins.get(env, origin) if origin == _DOTENV else origin
        for env, origin in loaded.origin.items()
    }
    return replace(loaded, origin=named)


def _read_dotenv(path: Path) -> dict[str, str]:
    try:
        return parse_dotenv(path.read_bytes().decode("utf-8"))
    except OSError as ex:
        raise StartRefused(f"{path} cannot be read: {ex.strerror or ex}") from None
    except UnicodeDecodeError as ex:
        raise StartRefused(
            f"{path} cannot be read: byte {ex.start} is not UTF-8 (save the file as UTF-8)"
        ) from None
    except DotenvInvalid as ex:
        raise StartRefused(f"{path}, {ex}") from None
