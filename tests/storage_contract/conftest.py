"""Fixtures of the contract suite: an empty store, on the backend of the test."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pylon.storage.backend import Backend
from tests.storage_contract.backends import StoreStage, open_backend
from tests.support.exists_app import app_of
from tests.support.stores import TestStore


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    """An empty store."""
    return open_backend(tmp_path)


@pytest.fixture
def stage(backend: Backend) -> Iterator[StoreStage]:
    """An open store with the manifest of `tests.support.storage`."""
    made = StoreStage(backend)
    yield made
    made.close()


@pytest.fixture(scope="module")
def open_stage(tested_store: TestStore) -> Any:
    """Return a function that opens an empty store in a folder, with a rule for messages."""
    return lambda folder, rule: StoreStage(open_backend(Path(folder)), app_of(rule))
