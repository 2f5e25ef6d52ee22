"""pylon.roles: a role is one entry of the table, its settings and a folder."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from pylon.config import load
from pylon.roles import PORT_BY_ROLE, ROLE_BY_NAME, ROLE_NAMES, ROLES, drain_stages
from pylon.settings import SETTINGS

ROOT = Path(__file__).resolve().parent.parent


def test_names_settings_and_offsets_are_unique() -> None:
    for field in ("name", "title", "module", "workers_field"):
        assert len({getattr(role, field) for role in ROLES}) == len(ROLES), field
    for field in ("setting", "field", "url_field", "offset"):
        assert len({getattr(port, field) for port in PORT_BY_ROLE.values()}) == len(PORT_BY_ROLE)


def test_every_role_has_its_settings_and_its_folder() -> None:
    fields = {setting.field: setting.env for setting in SETTINGS}
    for role in ROLES:
        assert role.workers_field in fields
        if role.port is not None:
            assert fields[role.port.field] == role.port.setting
            assert role.port.url_field in fields
        assert find_spec(role.module) is not None, role.module
        assert role.module.split(".")[:2] == ["workers", role.name]


def test_ports_and_numbers_of_workers_follow_from_the_table() -> None:
    config = load({"PYLON_PORT": "9000", "PYLON_SSE_PORT": "7000"}).config
    assert [config.port_of(name) for name in PORT_BY_ROLE] == [9000, 9001, 7000, 9003]
    for role in ROLES:
        assert config.workers_of(role.name) == getattr(config, role.workers_field)


def test_each_role_is_drained_once_and_http_first() -> None:
    stages = drain_stages()
    assert sorted(name for stage in stages for name in stage) == sorted(ROLE_NAMES)
    assert stages == [("http",), ("shards", "identity"), ("ws", "sse")]


def test_a_role_that_runs_with_another_is_on_where_that_one_is() -> None:
    followers = [role for role in ROLES if role.runs_with is not None]
    assert [(role.name, role.runs_with) for role in followers] == [("identity", "http")]
    assert load({"PYLON_ROLES": "http"}).config.workers_of("identity") == 1
    assert load({"PYLON_ROLES": "ws"}).config.workers_of("identity") == 0
    assert load({"PYLON_IDENTITY_WORKERS": "0"}).config.workers_of("identity") == 0


def test_the_list_of_roles_is_written_once() -> None:
    """No module of the product lists two roles by name, except the table."""
    names = [repr(name).replace("'", '"') for name in ROLE_BY_NAME]
    pairs = [f"{one}, {other}" for one in names for other in names if one != other]
    found = [
        f"{path.relative_to(ROOT)}: {pair}"
        for folder in ("pylon", "supervisor", "workers")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "roles.py" or path.parent.name != "pylon"
        for pair in pairs
        if pair in path.read_text()
    ]
    assert found == []
