"""The layers of the code: which package may import which, so that no two need each other.

A *unit* is a package or module right below `pylon` or `workers`, the supervisor, or a part of
`pylon.storage`. `LAYERS` has all units, from the bottom to the top. A unit imports units of its own
layer or of lower ones, and never in a circle. Imports inside functions and under TYPE_CHECKING
count like all others, unless `EXCEPTIONS` names them with the reason.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("pylon", "workers", "supervisor")

LAYERS: tuple[tuple[str, ...], ...] = (
    # The base of every process.
    (
        "pylon.errors", "pylon.limits", "pylon.clock", "pylon.ids", "pylon.log", "pylon.metrics",
        "pylon.json_text", "pylon.auth_context", "pylon.disk_errors", "pylon.roles",
        "pylon.runtime", "pylon.private_folders", "pylon.admission", "pylon.round_robin",
        "pylon.control", "pylon.body_types", "pylon.key_scopes",
        "pylon.trace_context", "pylon.clientjs", "pylon.nearest_names", "pylon.dsl",
        "pylon.client", "pylon.starters", "pylon.testing",
    ),
    # Settings, and the folder of the data.
    (
        "pylon.database_url", "pylon.dotenv", "pylon.foreign_settings", "pylon.setting_values",
        "pylon.setting_checks", "pylon.settings", "pylon.provider_settings", "pylon.config",
        "pylon.data_dir", "pylon.data_dir_lock",
    ),
    # Where backups go, and the log that they ship.
    ("pylon.archive", "pylon.storage.shipping"),
    # The declarations of an app, and the queries of its rows.
    ("pylon.manifest", "pylon.values", "pylon.schema", "pylon.query", "pylon.policy"),
    ("pylon.manifest_loader", "pylon.catalogue", "pylon.pages", "pylon.dev_problems"),
    ("pylon.app_manifest",),
    # The interface of a store.
    (
        "pylon.storage", "pylon.storage.auth_tables", "pylon.storage.auth_ops",
        "pylon.storage.events", "pylon.storage.ops", "pylon.storage.records",
        "pylon.storage.interface",
        "pylon.storage.schemas", "pylon.storage.backups", "pylon.storage.backend",
        "pylon.storage.related", "pylon.storage.transfer", "pylon.storage.nodes",
        "pylon.storage.public_rows",
    ),
    # What works on any store.
    (
        "pylon.auth", "pylon.changelog", "pylon.crdt", "pylon.realtime", "pylon.rates",
        "pylon.limiter", "pylon.app_rates", "pylon.app", "pylon.mail", "pylon.tracing",
        "pylon.files",
    ),
    # How a store is made. Nobody but the factory knows a backend.
    ("pylon.storage.core", "pylon.storage.bundle"),
    ("pylon.storage.sql",),
    ("pylon.storage.sqlite", "pylon.storage.postgres"),
    ("pylon.storage.factory",),
    # How processes speak to each other, and to clients.
    ("pylon.cluster",),
    ("pylon.bus",),
    ("pylon.rooms",),
    ("pylon.api", "pylon.openapi"),
    ("pylon.codegen",),
    ("pylon.doctor",),
    ("pylon.seed_file", "pylon.startup", "pylon.bench", "pylon.migrate", "pylon.install"),
    ("pylon.cli",),
    # Processes. Those of `workers` and the supervisor meet on the bus only.
    ("workers", "workers.net", "workers.merge_sandbox", "workers.boot"),
    ("workers.hub",),
    (
        "workers.http", "workers.ws", "workers.sse", "workers.shards", "workers.identity",
        "workers.template", "workers.__main__",
    ),
    ("supervisor",),
)
# Importing unit, imported unit: why.
EXCEPTIONS: dict[tuple[str, str], str] = {
    ("pylon.setting_checks", "pylon.config"): "annotations only; config calls the checks",
    ("pylon.api", "pylon.openapi"): "the document is made with the first request for it",
    ("pylon.cli", "supervisor"): "`pylonctl start` becomes the supervisor",
    ("pylon.cli", "workers.template"): "a fork of `pylonctl start` becomes the template",
}
# A driver: the only packages that may import it.
DRIVERS = {"apsw": ("pylon.storage.sqlite",), "psycopg": ("pylon.storage.postgres",),
           "zmq": ("pylon.bus", "pylon.cluster"), "loro": ("pylon.crdt",)}
BACKENDS = {
    "pylon.storage.sqlite": "pylon.storage.factory",
    "pylon.storage.postgres": "pylon.storage.factory",
}


class Import(NamedTuple):
    """One import: in which module, of what, at which line."""

    module: str
    imported: str
    line: int

    def __str__(self) -> str:
        return f"{self.module}:{self.line} imports {self.imported}"


def unit_of(module: str) -> str:
    parts = module.split(".")
    if parts[0] == "supervisor":
        return "supervisor"
    depth = 3 if parts[:2] == ["pylon", "storage"] else 2
    return ".".join(parts[:depth])


def modules() -> dict[str, Path]:
    found = {}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            parts = path.relative_to(ROOT).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


@cache  # not at import: workers of xdist import this module and may run none of its tests
def all_imports() -> tuple[Import, ...]:
    """Every import of ours; `from package import module` is one of the module."""
    known = modules()
    found = []
    for module, path in known.items():
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found += [Import(module, alias.name, node.lineno) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module is not None:
                full_names = [f"{node.module}.{alias.name}" for alias in node.names]
                found += [
                    Import(module, full if full in known else node.module, node.lineno)
                    for full in full_names
                ]
    return tuple(found)


LAYER_OF = {unit: number for number, units in enumerate(LAYERS) for unit in units}


def between_units() -> Iterator[tuple[str, str, Import]]:
    """The imports of one unit of ours by another. The root package has only short names for apps,
    which it loads when they are asked for."""
    for found in all_imports():
        user, used = unit_of(found.module), unit_of(found.imported)
        if found.imported.split(".")[0] in PACKAGES and user != used and "pylon" not in (
            user, used
        ):
            yield user, used, found


def test_every_unit_has_its_layer() -> None:
    units = {unit_of(module) for module in modules()} - {"pylon"}
    assert units == set(LAYER_OF)
    assert len(LAYER_OF) == sum(len(units) for units in LAYERS)


def test_no_unit_imports_a_higher_one() -> None:
    upward = [
        str(found) for user, used, found in between_units()
        if LAYER_OF[used] > LAYER_OF[user] and (user, used) not in EXCEPTIONS
    ]
    assert upward == []


def test_no_units_import_each_other_in_a_circle() -> None:
    uses: dict[str, set[str]] = defaultdict(set)
    for user, used, _ in between_units():
        if (user, used) not in EXCEPTIONS:
            uses[user].add(used)
    done: set[str] = set()

    def visit(unit: str, path: tuple[str, ...]) -> None:
        assert unit not in path, " -> ".join((*path[path.index(unit):], unit))
        if unit not in done:
            for used in sorted(uses[unit]):
                visit(used, (*path, unit))
            done.add(unit)

    for unit in sorted(uses):
        visit(unit, ())


def test_every_exception_is_needed() -> None:
    found = {(user, used) for user, used, _ in between_units()}
    assert set(EXCEPTIONS) <= found


def test_a_driver_is_imported_in_its_packages_only() -> None:
    strangers = [
        str(found) for found in all_imports()
        if (homes := DRIVERS.get(found.imported.split(".")[0])) is not None
        and not f"{found.module}.".startswith(tuple(f"{home}." for home in homes))
    ]
    assert strangers == []


def test_nobody_but_the_factory_knows_a_backend() -> None:
    strangers = [
        str(found) for found in all_imports()
        for backend, factory in BACKENDS.items()
        if f"{found.imported}.".startswith(f"{backend}.")
        and not f"{found.module}.".startswith(f"{backend}.") and found.module != factory
    ]
    assert strangers == []
