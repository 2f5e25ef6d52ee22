"""Setting changes: what differs between two sets of settings, and what a running server can adopt.

Each setting says how it changes (`Setting.change`): by other workers, by another run of the server
within its process, or by a restart. Operators scale roles by numbers of workers; these are
settings too, which no file contains.

Pure functions, for any thread. Called by `supervisor.generations`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from pylon.config import Config, Loaded
from pylon.errors import InvalidData, ReloadRefused
from pylon.roles import ROLE_BY_NAME, ROLE_NAMES
from pylon.settings import SETTINGS

_SETTING_BY_NAME: Final = {setting.env: setting for setting in SETTINGS}
_SETTING_BY_FIELD: Final = {setting.field: setting.env for setting in SETTINGS}
_SHOWN_CHARS: Final = 80


def with_workers(loaded: Loaded, wanted: Mapping[str, int]) -> Loaded:
    """Return the settings with other numbers of workers."""
    fields: dict[str, Any] = {
        ROLE_BY_NAME[role].workers_field: count for role, count in wanted.items()
    }
    raw = {_SETTING_BY_FIELD[name]: str(count) for name, count in fields.items()}
    config: Config = replace(loaded.config, **fields)
    return replace(loaded, config=config, raw={**loaded.raw, **raw})


def check_scale(config: Config, wanted: Mapping[str, Any]) -> dict[str, int]:
    """Return the numbers of workers by role.

    Raises:
        InvalidData: a role is unknown, is off, or cannot have so many workers.
    """
    if not wanted:
        raise InvalidData("Name a role and its number of workers, for example http=4")
    return {role: _check_count(config, role, count) for role, count in wanted.items()}


def _check_count(config: Config, role: str, count: object) -> int:
    scalable = [name for name in ROLE_NAMES if not is_exclusive(name)]
    if role not in ROLE_BY_NAME:
        raise InvalidData(f"{role!r} is no role; expected {', '.join(scalable)}")
    setting = _SETTING_BY_FIELD[ROLE_BY_NAME[role].workers_field]
    if is_exclusive(role):
        raise InvalidData(
            f"{role} cannot be scaled while the server runs, since its processes have their own "
            f"state: set {setting} and run pylonctl restart"
        )
    if not config.workers_of(role):
        raise InvalidData(f"{role} is switched off: set {setting} or PYLON_ROLES, and restart")
    try:
        parsed = _SETTING_BY_NAME[setting].parse(str(count))
    except ValueError as ex:
        raise InvalidData(f"{role}={count}: {ex}") from ex
    if not isinstance(parsed, int) or parsed < 1:
        raise InvalidData(
            f"{role}=0 would switch the role off: set {setting}=0 and run pylonctl restart"
        )
    return parsed


def changed_settings(before: Loaded, now: Loaded) -> list[str]:
    """Return the names of the settings whose texts differ."""
    names = dict.fromkeys((*before.raw, *now.raw))
    return [name for name in names if before.raw.get(name) != now.raw.get(name)]


def refuse_restart_settings(changed: list[str], loaded: Loaded) -> None:
    """Refuse a reload with settings that only a restart can change.

    Raises:
        ReloadRefused: one of `changed` is such a setting. In dev mode none is.
    """
    if loaded.config.dev_mode:
        return
    for name in changed:
        if change_of(name) != "restart":
            continue
        setting = _SETTING_BY_NAME[name]
        value = loaded.raw.get(name)
        shown = "(hidden)" if setting.secret else "not set" if value is None else repr(value)
        raise ReloadRefused(
            f"{name} is now {shown[:_SHOWN_CHARS]}, which a reload cannot change: run pylonctl "
            "restart, or take the change back",
        )


def change_of(name: str) -> str:
    """Return how a setting changes; those of families concern workers alone."""
    setting = _SETTING_BY_NAME.get(name)
    return "workers" if setting is None else setting.change


def is_exclusive(role: str) -> bool:
    """Return whether the workers of a role cannot run beside their successors."""
    return ROLE_BY_NAME[role].is_exclusive
