"""The tests that the tables of standards name are tests that pytest collects."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path

import pytest

from tests.attacks.standards import ROOT, Item, check_items

MODULES = sorted(
    path.stem for pattern in ("test_owasp_*.py", "test_asvs_*.py")
    for path in Path(__file__).parent.glob(pattern)
)


def items_of(module: str) -> dict[str, Item]:
    found: dict[str, Item] = importlib.import_module(f"tests.attacks.{module}").ITEMS
    return found


def test_all_items_of_the_standards_have_a_module() -> None:
    assert [name[:16] for name in MODULES if "owasp" in name] == [
        f"test_owasp_api{number:02d}" for number in range(1, 11)
    ]
    assert [name[:11] for name in MODULES if "asvs" in name] == [
        "test_asvs_2", "test_asvs_3", "test_asvs_4",
    ]


@pytest.mark.usefixtures("processes")
def test_pytest_collects_each_named_test() -> None:
    named = {
        f"tests/{test}" for module in MODULES for item in items_of(module).values()
        for test in item.tests
    }
    assert len(named) > 100
    files = sorted({name.partition("::")[0] for name in named})
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider",
         "--store", "sqlite", *files],
        cwd=ROOT, text=True, capture_output=True, check=False, timeout=300,
    )
    collected = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert named - collected == set(), done.stderr


@pytest.mark.parametrize("items", [
    {"1": Item("without a proof")},
    {"1": Item("a test that is not there", ("attacks/test_standards.py::test_nothing",))},
])
def test_a_table_with_a_hole_is_refused(items: dict[str, Item]) -> None:
    with pytest.raises(AssertionError):
        check_items(items, "1")
    with pytest.raises(AssertionError):
        check_items(items, "1 2")
