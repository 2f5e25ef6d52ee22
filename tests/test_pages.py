"""The documentation in the wheel: pages by name, sections by words, `pylonctl docs`, the site."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from pylon import pages
from pylon.cli.main import main

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "nets").mkdir()
    (tmp_path / "nets" / "README.md").write_text("# Nets\n\nAll about nets.\n")
    (tmp_path / "nets" / "fish.md").write_text(
        "# Fish\n\n```sh\n# no heading\n```\n## Salmon\nred\n"
    )
    (tmp_path / "boats.md").write_text("# Boats\n\nA boat has nets.\n\n## Sails\n\nWhite.\n")
    return tmp_path


def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs" / "build_site.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """Run `pylonctl` in this process; returns the exit code and what it printed."""

    def call(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        printed = capsys.readouterr()
        return int(ended.value.code or 0), printed.out + printed.err

    return call


def test_pages_have_the_names_of_their_files_and_folders(folder: Path) -> None:
    assert [(page.name, page.title) for page in pages.all_pages(folder)] == [
        ("boats", "Boats"), ("nets", "Nets"), ("nets/fish", "Fish"),
    ]


@pytest.mark.parametrize(
    ("topic", "name"),
    [("nets", "nets"), ("fish", "nets/fish"), ("nets/fish.md", "nets/fish"), ("Boats", "boats"),
     ("sails", None), ("", None)],
)
def test_a_page_is_found_by_its_name_or_the_end_of_it(
    folder: Path, topic: str, name: str | None
) -> None:
    found = pages.find_page(topic, folder)
    assert (found.name if found else None) == name


def test_a_comment_in_a_block_of_code_begins_no_section(folder: Path) -> None:
    (page,) = [page for page in pages.all_pages(folder) if page.name == "nets/fish"]
    assert [(each.heading, each.text) for each in pages.sections_of(page) if each.text] == [
        ("Fish", "```sh\n# no heading\n```"), ("Salmon", "red"),
    ]


def test_a_search_needs_all_words_and_prefers_headings(folder: Path) -> None:
    def found(words: str, limit: int = 9) -> list[str]:
        return [each.heading for each in pages.search_sections(words, limit, folder)]

    assert found("net") == ["Nets", "Boats"]
    assert found("net", limit=1) == ["Nets"]
    assert found("boat white") == ["Sails"]
    assert found("boat salmon") == []
    assert found("?!") == []


def test_the_verb_lists_prints_and_searches(run: Callable[..., tuple[int, str]]) -> None:
    code, out = run("docs")
    assert code == 0 and "operations/backup" in out
    code, out = run("docs", "policies")
    assert code == 0 and out == (ROOT / "docs" / "policies.md").read_text()
    code, out = run("docs", "--search", "kill worker quarantine")
    assert code == 0 and "(pylonctl docs operations/incidents)" in out
    code, out = run("docs", "--json", "--search", "webauthn passkey")
    assert code == 0 and "passkeys" in {each["page"] for each in json.loads(out)["sections"]}


def test_an_unknown_page_names_the_nearest(run: Callable[..., tuple[int, str]]) -> None:
    code, out = run("docs", "polices")
    assert code == 1 and "did you mean policies?" in out
    code, out = run("docs", "--search", "xyzzy")
    assert code == 1 and "pylonctl docs lists all pages" in out
    code, _ = run("docs", "policies", "--search", "x")
    assert code == 64


def test_links_of_the_site_lead_to_pages_or_are_text() -> None:
    site = builder()
    places = site.sources()
    source = ROOT / "docs" / "operations" / "install.md"
    text = site.with_links_of_the_site(
        "[README](../../README.md#settings) [file](../../nginx/pylon.conf) [mail](../mail.md)\n"
        "[x](https://x.example) [deploy](../deploy)\n```md\n[kept](../../nginx/x)\n```\n",
        source, places,
    )
    assert text == (
        "[README](../index.md#settings) file [mail](../mail.md)\n"
        "[x](https://x.example) [deploy](../deploy/README.md)\n```md\n[kept](../../nginx/x)\n```\n"
    )


def test_every_page_is_in_the_navigation() -> None:
    named = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    assert sorted(named) == sorted(str(place) for place in builder().sources().values())
