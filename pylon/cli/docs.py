"""`pylonctl docs`: lists, prints and searches the documentation that came with the program."""

from __future__ import annotations

import sys
from typing import Final

import click

from pylon.cli.output import json_flag, result, wants_json
from pylon.errors import NotFound
from pylon.pages import Page, Section, all_pages, find_page, nearest_name, search_sections

_RESULTS: Final = 8  # sections that a search prints
_EXCERPT_LINES: Final = 4


@click.command()
@click.argument("topic", required=False)
@click.option("--search", "words", metavar="WORDS", help="Print the sections with all these words.")
@json_flag
def docs(topic: str | None, words: str | None) -> None:
    """Print the documentation page TOPIC; without one, list all pages."""
    if topic is not None and words is not None:
        raise click.UsageError("give a TOPIC or --search WORDS, not both")
    if words is not None:
        _print_sections(words)
    elif topic is not None:
        _print_page(topic)
    else:
        pages = all_pages()
        width = max(len(page.name) for page in pages)
        result(
            {"pages": [{"name": page.name, "title": page.title} for page in pages]},
            "\n".join(f"{page.name:<{width}}  {page.title}" for page in pages),
        )


def _print_page(topic: str) -> None:
    page = find_page(topic)
    if page is None:
        near = nearest_name(topic)
        raise NotFound(
            f"There is no page {topic!r}",
            hint=f"did you mean {near}?" if near else "pylonctl docs lists all pages",
        )
    text = page.read_text()
    if wants_json():
        result({"name": page.name, "title": page.title, "markdown": text}, text)
    elif sys.stdout.isatty():
        click.echo_via_pager(text)
    else:
        click.echo(text, nl=False)


def _print_sections(words: str) -> None:
    found = search_sections(words, _RESULTS)
    if not found:
        raise NotFound(
            f"No section has all the words of {words!r}",
            hint="use fewer words, or their beginnings; pylonctl docs lists all pages",
        )
    result(
        {"sections": [
            {"page": each.page.name, "heading": each.heading, "text": each.text} for each in found
        ]},
        "\n\n".join(_excerpt(each) for each in found),
    )


def _excerpt(section: Section) -> str:
    page: Page = section.page
    place = page.title if section.heading == page.title else f"{page.title}: {section.heading}"
    lines = [line for line in section.text.splitlines() if line.strip()][:_EXCERPT_LINES]
    return "\n".join((f"{place}  (pylonctl docs {page.name})", *(f"  {line}" for line in lines)))
