"""Headers, comments and pages name modules of ours, and names in them, that exist."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("pylon", "workers", "supervisor", "tests", "bench")
_DOTTED = re.compile(r"`((?:pylon|workers|supervisor)(?:\.[a-z_][a-z0-9_]*)+)(?:\.[A-Z]\w*)?`")
_PATH = re.compile(r"`((?:pylon|workers|supervisor|tests|bench)/[\w/]+\.py)`")
# Files of a backup and of an installation, the key of a WSGI environ, the attribute of a span.
_NO_MODULES = {"pylon.db", "pylon.dump", "pylon.env", "pylon.raw_path", "pylon.request_id"}


def texts() -> Iterator[tuple[str, str]]:
    """Yield each source and each page with its text."""
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")]
    sources = [path for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    for path in sorted([*pages, *sources]):
        if path.name != "CHANGELOG.md":
            yield str(path.relative_to(ROOT)), path.read_text()


def find_source(parts: list[str]) -> Path | None:
    """Return the file of a module; None if there is none."""
    place = ROOT.joinpath(*parts)
    for path in (place.with_suffix(".py"), place / "__init__.py"):
        if path.is_file():
            return path
    return None


def exists(name: str) -> bool:
    """Whether a dotted name is a package, a module, or a word in the source of one."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        source = find_source(parts[:count])
        if source is not None:
            rest = parts[count:]
            return not rest or re.search(rf"\b{rest[0]}\b", source.read_text()) is not None
        if count == len(parts) and ROOT.joinpath(*parts).is_dir():
            return True
    return False


def test_modules_that_texts_name_exist() -> None:
    stale = [
        f"{place}: {match[0]}"
        for place, text in texts() for match in _DOTTED.finditer(text)
        if match[1] not in _NO_MODULES and not exists(match[1])
    ]
    assert stale == []


def test_files_that_texts_name_exist() -> None:
    stale = [
        f"{place}: {match[0]}"
        for place, text in texts() for match in _PATH.finditer(text)
        if not (ROOT / match[1]).is_file()
    ]
    assert stale == []
