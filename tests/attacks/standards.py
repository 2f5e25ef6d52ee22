"""Tables of security standards: each item, and the tests that prove it or why it does not apply.

A module of a standard (`test_owasp_api…`, `test_asvs_…`) has a table `ITEMS` by the item's number.
`check_items` is what its first test calls: each item has tests or a reason, and each named test is
there. `test_standards.py` also asks pytest whether it collects them.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).parent.parent.parent


@dataclass(frozen=True, slots=True)
class Item:
    """One requirement, in a few words.

    Attributes:
        tests: `path below tests::test` of each test that proves it.
        why_not: why there is none; of an item with tests, where the default falls short of it.
    """

    text: str
    tests: tuple[str, ...] = ()
    why_not: str | None = None


def proved(text: str, *tests: str, but: str | None = None) -> Item:
    """Return an item that tests prove."""
    return Item(text, tests, but)


def not_applicable(text: str, why: str) -> Item:
    """Return an item that does not apply."""
    return Item(text, why_not=why)


def check_items(items: Mapping[str, Item], numbers: str) -> None:
    """Check a table.

    Args:
        numbers: the numbers of all items of the standard, separated by spaces.
    """
    assert list(items) == numbers.split()
    for number, item in items.items():
        assert item.tests or item.why_not, f"{number} has neither tests nor a reason"
        for name in item.tests:
            path, _, test = name.partition("::")
            assert test in tests_of(path), f"{number}: there is no test {name}"


@cache
def tests_of(path: str) -> frozenset[str]:
    """Return the tests of a module that are not skipped, by its path below `tests`."""
    tree = ast.parse((ROOT / "tests" / path).read_text())
    return frozenset(
        node.name for node in tree.body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
        and not any("skip" in ast.dump(each) or "xfail" in ast.dump(each)
                    for each in node.decorator_list)
    )
