"""Fixtures of the tests of the Python client: a served app for each module.

Without the client's packages (`make test` installs them) the folder is left out, except in CI.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.python.app import MANIFEST
from tests.support.server import PylonServer

if importlib.util.find_spec("pylon_client") is None and os.environ.get("PYLON_CI") != "1":
    collect_ignore_glob = ["test_*.py"]  # read by pytest


def pytest_report_header() -> str | None:
    if "collect_ignore_glob" in globals():
        return "tests/clients/python is left out: pip install -r requirements-test.lock"
    return None


@pytest.fixture(scope="module")
def app_server(processes: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PylonServer]:
    """A server of the app in tests/clients/python/app.py, shared by the module."""
    server = PylonServer(tmp_path_factory.mktemp("s"), MANIFEST, {
        "PYLON_DEV_MODE": "true", "PYLON_APP": str(Path(__file__).with_name("board.py")),
    })
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture(scope="module")
def url(app_server: PylonServer) -> str:
    return f"http://127.0.0.1:{app_server.port}"
