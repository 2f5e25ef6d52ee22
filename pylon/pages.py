"""The pages of the documentation: names, titles, texts, and a search over their sections.

`pylon/docs` is a link to `docs/`, so the wheel contains the pages. A page's name is its path
without `.md`; the page of a folder (`README.md`) has the folder's name. Nothing is kept in memory:
a call reads the files that it needs.

Called by `pylonctl docs`, by `docs/build_site.py`, which makes the HTML of them, and by the HTTP
workers, which serve it in dev.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Final

FOLDER: Final = Path(__file__).parent / "docs"
SITE: Final = Path(__file__).parent / "site"  # HTML of the pages; `make docs` makes it
_INDEX: Final = "README"
_FENCE: Final = re.compile(r"^ *(```|~~~)")
_WORD: Final = re.compile(r"\w+")
_TEXT_WEIGHT: Final = 1  # of a word in the text
_TITLE_WEIGHT: Final = 8  # of a word in the heading


@dataclass(frozen=True, slots=True)
class Page:
    """One page: `name` as users type it, `title` from its first line, its file."""

    name: str
    title: str
    path: Path

    def read_text(self) -> str:
        """Return the page as Markdown."""
        return self.path.read_text(encoding="utf-8")


@dataclass(frozen=True, slots=True)
class Section:
    """The text below one heading of a page, up to the next heading."""

    page: Page
    heading: str
    text: str


def all_pages(folder: Path = FOLDER) -> list[Page]:
    """Return every page below `folder`, in the order of their names."""
    pages = []
    for path in folder.rglob("*.md"):
        parts = path.relative_to(folder).with_suffix("").parts
        name = "/".join(parts[:-1] if parts[-1] == _INDEX and len(parts) > 1 else parts)
        with path.open(encoding="utf-8") as lines:
            pages.append(Page(name, next(lines).lstrip("#").strip(), path))
    return sorted(pages, key=lambda page: page.name)


def find_page(topic: str, folder: Path = FOLDER) -> Page | None:
    """Return the page with the name `topic`, or the only one whose last part is `topic`."""
    wanted = topic.strip().strip("/").removesuffix(".md").lower()
    pages = all_pages(folder)
    for page in pages:
        if page.name == wanted:
            return page
    ends = [page for page in pages if page.name.rpartition("/")[2] == wanted]
    return ends[0] if len(ends) == 1 else None


def nearest_name(topic: str, folder: Path = FOLDER) -> str | None:
    """Return the name most similar to `topic`, or None."""
    names = [page.name for page in all_pages(folder)]
    close = get_close_matches(topic.strip().lower(), names, n=1, cutoff=0.5)
    return close[0] if close else None


def sections_of(page: Page) -> Iterator[Section]:
    """Yield the sections of a page; a line that begins with # within a code block is no heading."""
    heading, lines, in_code = page.title, list[str](), False
    for line in page.read_text().splitlines():
        if _FENCE.match(line):
            in_code = not in_code
        if line.startswith("#") and not in_code:
            if lines:
                yield Section(page, heading, "\n".join(lines).strip())
            heading, lines = line.lstrip("#").strip(), []
        else:
            lines.append(line)
    yield Section(page, heading, "\n".join(lines).strip())


def search_sections(words: str, limit: int, folder: Path = FOLDER) -> list[Section]:
    """Return at most `limit` sections that contain every word of `words`, the best first.

    A word counts where a word of the section begins with it, more in the heading than in the text.
    """
    wanted = [word.lower() for word in _WORD.findall(words)]
    found: list[tuple[int, int, Section]] = []
    for page in all_pages(folder):
        for section in sections_of(page):
            score = _score(section, wanted)
            if score > 0:
                found.append((-score, len(found), section))
    return [section for _, _, section in sorted(found, key=lambda each: each[:2])[:limit]]


def _score(section: Section, wanted: list[str]) -> int:
    if not wanted:
        return 0
    heading = _WORD.findall(f"{section.page.title} {section.heading}".lower())
    text = _WORD.findall(section.text.lower())
    total = 0
    for word in wanted:
        in_heading = sum(each.startswith(word) for each in heading)
        in_text = sum(each.startswith(word) for each in text)
        if not in_heading and not in_text:
            return 0
        total += _TITLE_WEIGHT * in_heading + _TEXT_WEIGHT * min(in_text, _TITLE_WEIGHT)
    return total
