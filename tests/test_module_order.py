"""The order of test modules: the longest first, and no module in the table that is gone."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.support.module_order import SECONDS, order_items

TESTS = Path(__file__).parent


def fake_item(nodeid: str) -> Any:
    return SimpleNamespace(nodeid=nodeid)


def test_every_module_of_the_table_is_there() -> None:
    assert [name for name in SECONDS if not (TESTS / name).is_file()] == []


def test_long_modules_come_first_and_others_by_their_number_of_tests() -> None:
    nodeids = [
        "tests/test_small.py::a", "tests/test_large.py::b", "tests/test_large.py::a",
        "tests/test_e2e_shards.py::y", "tests/test_bench_tools.py::c",
        "tests/test_e2e_shards.py::a",
    ]
    assert [item.nodeid for item in order_items([fake_item(nodeid) for nodeid in nodeids])] == [
        "tests/test_bench_tools.py::c",
        "tests/test_e2e_shards.py::y", "tests/test_e2e_shards.py::a",
        "tests/test_large.py::b", "tests/test_large.py::a", "tests/test_small.py::a",
    ]
