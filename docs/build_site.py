"""Builds the site of the documentation: python docs/build_site.py FOLDER

Zensical (`mkdocs.yml`) makes HTML of the pages in `docs/`, and of the README and its neighbours.
A page may link to a file of the repository that is no page; the site has only its text. `make docs`
calls this, and `llms.txt` beside the pages lists them for language models (llmstxt.org).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from itertools import cycle
from pathlib import Path

from pylon.pages import all_pages

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
# Pages outside docs/: their place in the site.
OUTER = {
    "README.md": "index.md", "ARCHITECTURE.md": "architecture.md", "SECURITY.md": "promises.md",
    "CHANGELOG.md": "changelog.md",
}
CODE = re.compile(r"(^ *(?:```|~~~).*?^ *(?:```|~~~)$)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[([^\]]+)\]\(([^)\s]+)\)")


def sources() -> dict[Path, Path]:
    """Return the place in the site of every page, by its file."""
    places = {path: path.relative_to(DOCS) for path in sorted(DOCS.rglob("*.md"))}
    return places | {ROOT / name: Path(place) for name, place in OUTER.items()}


def with_links_of_the_site(text: str, source: Path, places: dict[Path, Path]) -> str:
    """Return a page whose links lead to pages of the site, or are plain text."""
    here = places[source].parent

    def link(match: re.Match[str]) -> str:
        label, target = match.groups()
        path, mark, anchor = target.partition("#")
        if not path or "://" in target or target.startswith("mailto:"):
            return match[0]
        place = places.get((source.parent / path).resolve())
        if place is None and (source.parent / path / "README.md").resolve() in places:
            place = places[(source.parent / path / "README.md").resolve()]
        if place is None:
            return label
        return f"[{label}]({os.path.relpath(place, here)}{mark}{anchor})"

    parts = CODE.split(text)  # text and blocks of code, in turn
    return "".join(part if is_code else LINK.sub(link, part)
                   for is_code, part in zip(cycle((False, True)), parts))


def llms_text() -> str:
    """Return `llms.txt`: every page with its title."""
    lines = ["# Pylon", "", "> A self-hosted realtime backend in Python.", "", "## Pages", ""]
    for page in all_pages(DOCS):
        place = page.path.relative_to(DOCS).with_suffix(".html")
        if place.stem == "README":
            place = place.with_name("index.html")
        lines.append(f"- [{page.title}]({place})")
    return "\n".join(lines) + "\n"


def build(folder: Path) -> None:
    """Build the site into `folder`, which is replaced. Raises: CalledProcessError for a warning."""
    places = sources()
    with tempfile.TemporaryDirectory(prefix="pylon-docs-") as made:
        work = Path(made)
        shutil.copy(ROOT / "mkdocs.yml", work)
        for source, place in places.items():
            page = work / "docs" / place
            page.parent.mkdir(parents=True, exist_ok=True)
            page.write_text(with_links_of_the_site(source.read_text(), source, places))
        subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict", "-f", "mkdocs.yml"],
            cwd=work, check=True,
        )
        (work / "site" / "llms.txt").write_text(llms_text())
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(work / "site", folder)


if __name__ == "__main__":
    build(Path(sys.argv[1]))
