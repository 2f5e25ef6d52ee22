"""The error catalogue: complete, explained, current on its page, and printed by `pylonctl`."""

from __future__ import annotations

import importlib
import json
import pkgutil
from pathlib import Path

import pytest

import pylon
from pylon.catalogue import entries, entry, nearest
from pylon.cli.main import main
from pylon.errors import PylonError
from pylon.manifest.codes import DIAGNOSTICS
from tests.test_docs import ROOT, load

CORPUS = Path(__file__).parent / "corpora" / "manifest"


def test_every_error_class_anywhere_is_in_the_catalogue() -> None:
    for module in pkgutil.walk_packages(pylon.__path__, "pylon."):
        importlib.import_module(module.name)
    codes = {e.code for e in entries()}
    assert {cls.code for cls in PylonError.classes()} <= codes
    assert len(codes) > 80


def test_every_entry_says_what_and_what_to_do() -> None:
    bare = [e.code for e in entries() if len(e.explanation) < 15 or len(e.remedy) < 5]
    assert bare == []


def test_the_diagnostics_are_those_that_the_corpus_of_bad_manifests_gets() -> None:
    files = [*CORPUS.glob("*@*.json"), *CORPUS.parent.glob("manifest_warnings/*@*.json")]
    seen = {path.name.partition("@")[0].partition(".")[0] for path in files}
    too_large_for_a_file = {"ENTITY_FIELDS_TOO_MANY", "SEARCH_FIELDS_TOO_MANY"}
    of_rules = {"POLICY_EXPRESSION_INVALID", "POLICY_EXISTS_INDEX_MISSING"}
    assert seen - of_rules | too_large_for_a_file == DIAGNOSTICS.keys()


def test_the_errors_page_is_current() -> None:
    wanted = load(ROOT / "docs" / "errors_page.py").page()
    assert (ROOT / "docs" / "errors.md").read_text() == wanted, "run: python docs/errors_page.py"


def ctl(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        main(["explain", *args])
    shown = capsys.readouterr()
    code = ended.value.code
    assert isinstance(code, int)
    return code, shown.out, shown.err


def test_explain_prints_a_code(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ctl(capsys, "query_timeout")
    assert code == 0
    assert out.startswith("QUERY_TIMEOUT  (HTTP 503, the same request may succeed later)")
    assert "Remedy: narrow the query" in out


def test_explain_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ctl(capsys, "INDEX_NAME_EMPTY", "--json")
    known = entry("INDEX_NAME_EMPTY")
    assert code == 0
    assert known is not None
    assert json.loads(out) == known.to_json()
    assert json.loads(out)["kind"] == "manifest"
    _, out, _ = ctl(capsys, "--json")
    assert len(json.loads(out)["codes"]) == len(entries())


def test_explain_without_a_code_lists_all(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = ctl(capsys)
    assert code == 0
    assert len(out.splitlines()) == len(entries())


def test_an_unknown_code_gets_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = ctl(capsys, "POLICY_DENYED")
    assert code == 1
    assert "did you mean POLICY_DENIED?" in err
    assert nearest("xyzzy") is None
    assert "lists all codes" in ctl(capsys, "xyzzy")[2]
