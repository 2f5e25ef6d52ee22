"""Fixtures of the contract suite: each test runs once for each backend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from pylon.storage.backend import Backend
from tests.storage_contract.backends import BACKENDS, StoreStage


@pytest.fixture(params=sorted(BACKENDS))
def backend(request: pytest.FixtureRequest, tmp_path: Path) -> Backend:
    """An empty store of each backend."""
    return BACKENDS[request.param](tmp_path)


@pytest.fixture
def stage(backend: Backend) -> Iterator[StoreStage]:
    """An open store with the manifest of `tests.support.storage`."""
    made = StoreStage(backend)
    yield made
    made.close()
