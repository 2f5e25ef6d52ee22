"""Fixtures of the tests of sign-in: one served app for a module, and a stage without processes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import stores
from tests.support.api import ApiStage, serve_api
from tests.support.manifests import sign_in_app
from tests.support.server import PylonServer


@pytest.fixture(scope="module")
def members(
    processes: None, tested_store: stores.TestStore, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[PylonServer]:
    """The app of `sign_in_app`, served by real processes for all tests of the module."""
    server = PylonServer(tmp_path_factory.mktemp("members"), sign_in_app())
    try:
        yield server.start()
    finally:
        server.close()


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[ApiStage]:
    """The same app without processes: the flows run in the test's process, on a real store."""
    with serve_api(tmp_path, sign_in_app()) as made:
        yield made
