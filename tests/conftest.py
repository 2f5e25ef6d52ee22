"""Fixtures of all tests: a served app in a fresh folder, and the reasons for what is skipped."""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

from pylon.storage.interface import Reader, WriteEngine
from tests.support import process_guard, stores
from tests.support.cli import Ctl, make_ctl
from tests.support.examples import DEFAULT_EXAMPLES, count_examples
from tests.support.manifests import notes_app
from tests.support.module_order import order_items
from tests.support.postgres import PostgresServer, drop_schema, find_programs, make_schema
from tests.support.rooms import RoomServer
from tests.support.server import PylonServer
from tests.support.stage import Stage, Worker
from tests.support.storage import open_engine, open_reader

# No test says how long something takes: on a busy machine everything takes longer.
settings.register_profile(
    "pylon", deadline=None, max_examples=count_examples(DEFAULT_EXAMPLES),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("pylon")

process_guard.install()

IN_CI = os.environ.get("PYLON_CI") == "1"
CHOICE = pytest.StashKey[stores.StoreChoice]()


def need_program(name: str, package: str) -> str:
    """The path of a program, or a skip that names it. In CI a missing one is a failure."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    if found is None:
        reason = f"{name} is not installed (make test-tools, or: apt-get install {package})"
        if IN_CI:
            pytest.fail(f"in CI nothing installable is skipped: {reason}")
        pytest.skip(reason)
    return found


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--store", choices=stores.CHOICES, default=None,
        help="the stores that tests with the mark `stores` run on; both where PostgreSQL is there",
    )


def pytest_configure(config: pytest.Config) -> None:
    try:
        config.stash[CHOICE] = stores.choose_stores(config.getoption("--store"))
    except LookupError as ex:
        raise pytest.UsageError(str(ex)) from ex


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    terminalreporter.section("stores")
    for line in terminalreporter.config.stash[CHOICE].lines:
        terminalreporter.line(line)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run the tests with the mark `stores` once on each store of the run."""
    test = metafunc.definition
    on_both = test.get_closest_marker("stores") and not test.get_closest_marker("sqlite")
    names = metafunc.config.stash[CHOICE].stores_of(metafunc.module.__name__, on_both=bool(on_both))
    if on_both:
        metafunc.parametrize("tested_store", names, indirect=True, scope="module")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[object]:
    """Keep the garbage collector from the tests and modules that a collection makes."""
    # PERF: 17 instead of 24 s of CPU for 10,000 tests, in each worker of xdist; frozen, they also
    # cost the collections nothing that the tests themselves cause.
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.hookimpl(tryfirst=True)  # before pytest selects by mark
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    process_guard.mark_items(items)
    wanted = [item for item in items if config.stash[CHOICE].runs(item)]
    kept = set(wanted)
    if len(kept) < len(items):  # others are of the store that `--store` leaves out
        config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = order_items(wanted)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    with process_guard.watch(item):
        return (yield)


@pytest.fixture(scope="session")
def processes() -> None:
    """Let a test start Python processes, and mark it `processes`."""


@pytest.fixture(autouse=True)
def _same_umask() -> Iterator[None]:
    """`pylonctl` that runs within this process sets the umask 077; later tests must not have it."""
    before = os.umask(0o022)
    os.umask(before)
    yield
    os.umask(before)


@pytest.fixture
def program() -> Callable[[str, str], str]:
    return need_program


@pytest.fixture
def ctl(processes: None, tmp_path: Path) -> Ctl:
    """Run `pylonctl` in an app's folder."""
    return make_ctl(tmp_path)


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run, of the version PYLON_TEST_POSTGRES or the oldest here. Its
    programs, such as pg_dump, come first in PATH."""
    found = find_programs()
    version = stores.wanted_version(found)
    if version is None:
        reason = "PostgreSQL is not installed (make test-tools)"
        if IN_CI:
            pytest.fail(f"in CI nothing installable is skipped: {reason}")
        pytest.skip(reason)
    server = PostgresServer(found[version])
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("PATH", f"{server.programs}{os.pathsep}{os.environ['PATH']}")
        yield server
    server.close()


@pytest.fixture
def postgres_url(request: pytest.FixtureRequest) -> Iterator[str]:
    """The URL of an empty schema of its own, on PYLON_TEST_DATABASE_URL or a server of this run."""
    url = os.environ.get("PYLON_TEST_DATABASE_URL")
    if url is None:
        url = request.getfixturevalue("postgres_server").url
    made = make_schema(url)
    yield made
    drop_schema(url, made)


@pytest.fixture(scope="module", autouse=True)
def tested_store(request: pytest.FixtureRequest) -> Iterator[stores.TestStore]:
    """The store of the test: SQLite, or for tests with the mark `stores` each store of the run."""
    made = stores.TestStore(getattr(request, "param", stores.SQLITE))
    if made.name == stores.POSTGRES:
        made.url = os.environ.get("PYLON_TEST_DATABASE_URL")
        if made.url is None:
            made.server = request.getfixturevalue("postgres_server")
            made.url = made.server.url
    with stores.use(made):
        yield made


@pytest.fixture(autouse=True)
def _drop_databases(tested_store: stores.TestStore) -> Iterator[None]:
    """Remove the databases of a test at its end; those of its module stay."""
    before = len(tested_store.made)
    yield
    tested_store.drop_since(before)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[WriteEngine]:
    """The engine of an empty store in `a.db`, with the manifest of tests.support.storage."""
    made = open_engine(tmp_path / "a.db")
    yield made
    made.close()


@pytest.fixture
def reader(engine: WriteEngine, tmp_path: Path) -> Iterator[Reader]:
    """A reader of the store of `engine`."""
    made = open_reader(tmp_path / "a.db")
    yield made
    made.close()


@pytest.fixture
def own_stage(processes: None, tmp_path: Path) -> Iterator[Stage]:
    """A stage of this test alone."""
    made = Stage(tmp_path)
    yield made
    made.close()


@pytest.fixture
def own_ws(own_stage: Stage) -> Worker:
    """The ws worker of `own_stage`, without a limit of sockets of an address."""
    return own_stage.start("ws", PYLON_SOCKETS_PER_IP="0")


@pytest.fixture
def stage(own_stage: Stage) -> Stage:
    """The same as `own_stage`, in modules that share no stage."""
    return own_stage


@pytest.fixture
def room_server(stage: Stage) -> Iterator[RoomServer]:
    """The rooms of `stage`."""
    made = RoomServer(stage)
    yield made
    made.close()


@pytest.fixture
def make_server(processes: None, tmp_path: Path) -> Iterator[Callable[..., PylonServer]]:
    """Builds servers that are ended with the test."""
    made: list[PylonServer] = []

    def make(
        manifest: dict[str, Any] | None = None, name: str = "server", **env: str
    ) -> PylonServer:
        server = PylonServer(tmp_path / name, manifest or notes_app(), env)
        made.append(server)
        return server

    yield make
    for server in made:
        server.close()


@pytest.fixture
def server(make_server: Callable[..., PylonServer]) -> PylonServer:
    """The notes app, served and ready."""
    return make_server().start()
