"""Settings of the verbs: reads flags, the environment, and the env file of the server.

One rule finds the file: `--env-file`, else PYLON_ENV_FILE, else with `--dev` the `.env` files of
the current folder and its parents, else `/etc/pylon/pylon.env` if it is there. An empty
PYLON_ENV_FILE means that no file is read.

Invariants: a flag wins over the environment, the environment over the file. Among `.env` files,
`.env.local` wins over `.env`, and a nearer folder over one further up. `Loaded.origin` names the
source of each value. Called by every verb that needs settings.
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
from pylon.settings import ENV_FILE_NAME

DOTENV_NAMES: Final = (".env.local", ".env")  # the first wins
SERVER_ENV_FILE: Final = Path("/etc/pylon/pylon.env")

_FILES: Final = "env files"
_MODE: Final = "PYLON_DEV_MODE"
_CHOSEN: Final = "pylon.env_file"  # in the `meta` of click's context

F = TypeVar("F", bound=Callable[..., Any])


def env_file_flag(command: F) -> F:
    """Add `--env-file` to a verb. It may stand before the verb or behind it."""

    def remember(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
        if value is not None:
            ctx.meta[_CHOSEN] = value

    option = click.option(
        "--env-file", metavar="FILE", expose_value=False, is_eager=True, callback=remember,
        help=f"Read the settings of this file (default: {ENV_FILE_NAME}, else {SERVER_ENV_FILE}).",
    )
    return option(command)


def dev_flag(command: F) -> F:
    """Add `--env-file` to a verb, and `--dev`: settings as `pylonctl dev` has them."""
    option = click.option(
        "--dev", is_flag=True, help="Settings as `pylonctl dev` has them: dev mode, .env files."
    )
    return option(env_file_flag(command))


def dotenv_files(start: Path) -> list[Path]:
    """Return the `.env` files of a folder and its parents, by descending precedence."""
    start = start.absolute()
    candidates = [folder / name for folder in (start, *start.parents) for name in DOTENV_NAMES]
    return [path for path in candidates if path.is_file()]


def chosen_env_file(environ: Mapping[str, str]) -> str | None:
    """Return the file that `--env-file` or PYLON_ENV_FILE names; "": none is to be read."""
    ctx = click.get_current_context(silent=True)
    flag: str | None = None if ctx is None else ctx.meta.get(_CHOSEN)
    return environ.get(ENV_FILE_NAME) if flag is None else flag


def env_files(*, dev: bool, environ: Mapping[str, str], folder: Path | None = None) -> list[Path]:
    """Return the env files of this run, by descending precedence.

    Args:
        folder: where to look for `.env` files, in place of the current folder.
    """
    chosen = chosen_env_file(environ)
    if chosen is not None:
        return [Path(chosen)] if chosen else []
    if dev:
        return dotenv_files(folder or Path.cwd())
    return [SERVER_ENV_FILE] if os.path.lexists(SERVER_ENV_FILE) else []


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
        StartRefused: a value, or an env file, cannot be read.
    """
    environ = dict(os.environ if environ is None else environ)
    origins: dict[str, str] = {}
    in_files: dict[str, str] = {}
    paths = env_files(dev=dev, environ=environ, folder=folder)
    for path in paths:
        for name, value in _read_env_file(path).items():
            if name not in in_files:
                in_files[name] = value
                origins[name] = str(path)
    if dev and not any(source.get(_MODE) for source in (environ, in_files)):
        environ.pop(_MODE, None)  # an empty value counts as not set
        in_files[_MODE] = "1"
        origins[_MODE] = "pylonctl dev"
    given = {name: value for name, value in (flags or {}).items() if value is not None}
    files = str(paths[0]) if len(paths) == 1 else _FILES
    loaded = load({**environ, **given}, in_files, files)
    named = {
        env: "command line" if env in given and origin == "environment"
        else origins.get(env, origin) if origin == files else origin
        for env, origin in loaded.origin.items()
    }
    return replace(loaded, origin=named)


def _read_env_file(path: Path) -> dict[str, str]:
    try:
        return parse_dotenv(path.read_bytes().decode("utf-8"))
    except PermissionError:
        raise StartRefused(
            f"{path} cannot be read by this user",
            hint=f"sudo pylonctl …, or {ENV_FILE_NAME}= to read no file",
        ) from None
    except OSError as ex:
        raise StartRefused(f"{path} cannot be read: {ex.strerror or ex}") from None
    except UnicodeDecodeError as ex:
        raise StartRefused(
            f"{path} cannot be read: byte {ex.start} is not UTF-8 (save the file as UTF-8)"
        ) from None
    except DotenvInvalid as ex:
        raise StartRefused(f"{path}, {ex}") from None
