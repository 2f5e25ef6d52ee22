""".ci/audit.py: what an audit of the installed packages prints, and when it fails."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Judge = Callable[[dict[str, Any], dict[str, str]], tuple[list[str], int]]

WEAK = {
    "name": "weak", "version": "1.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["1.1"]}],
}
FINE = {"name": "fine", "version": "2.0", "vulns": []}
UNKNOWN = {"name": "unknown", "skip_reason": "Dependency not found on PyPI: unknown (3.0)"}
OWN = {"name": "pylon-server", "skip_reason": "Dependency not found on PyPI: pylon-server"}


@pytest.fixture(scope="module")
def judge() -> Judge:
    found: Judge = runpy.run_path(str(Path(__file__).parent.parent / ".ci/audit.py"))["judge"]
    return found


def test_a_known_vulnerability_fails_the_audit(judge: Judge) -> None:
    lines, code = judge({"dependencies": [WEAK, FINE, OWN]}, {})
    assert code == 1
    assert lines == [
        "pip-audit: weak 1.0: PYSEC-1, CVE-1; fixed in 1.1", "pip-audit: 2 of 2 packages audited",
    ]


def test_an_explained_vulnerability_is_printed_with_the_reason(judge: Judge) -> None:
    lines, code = judge({"dependencies": [WEAK]}, {"CVE-1": "we do not call it"})
    assert (code, "we do not call it" in lines[0]) == (0, True)


def test_packages_that_could_not_be_audited_are_named(judge: Judge) -> None:
    lines, code = judge({"dependencies": [FINE, UNKNOWN, OWN]}, {})
    assert code == 0
    assert lines == [
        "pip-audit: not audited: Dependency not found on PyPI: unknown (3.0)",
        "pip-audit: 1 of 2 packages audited",
    ]


def test_an_audit_of_no_package_is_skipped_and_not_passed(judge: Judge) -> None:
    lines, code = judge({"dependencies": [UNKNOWN, OWN]}, {})
    assert (code, len(lines)) == (0, 1)
    assert "SKIPPED" in lines[0] and "unknown (3.0)" in lines[0]
