"""Pages with texts for the tests of search, and words as Python splits them."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import apsw
import orjson

from pylon.manifest.model import Manifest
from pylon.manifest_loader import parse_manifest
from pylon.storage.schemas import SearchCheck
from pylon.storage.sqlite.schema.search import check
from tests.support.manifests import field

SEARCH = {"text": ["title", "body", "rank"], "facets": ["kind", "open", "rank", "price"],
          "sortable": ["rank", "title"]}


def pages_app(search: dict[str, Any] | None = SEARCH) -> dict[str, Any]:
    """Pages that are open, or are their owner's."""
    page: dict[str, Any] = {
        "name": "Page", "indexes": [], "relations": [],
        "fields": [
            field("title", "string"), field("body", "richtext", optional=True),
            field("kind", "string", optional=True), field("open", "bool"),
            field("rank", "int", optional=True), field("price", "float", optional=True),
            field("ownerId", "string"), field("slug", "string", optional=True, unique=True),
        ],
    }
    if search is not None:
        page["search"] = search
    plain = {"name": "Plain", "indexes": [], "relations": [],
             "fields": [field("text", "string"), field("done", "bool")]}
    return {
        "manifest_version": 1, "name": "pages", "version": "1.0.0", "entities": [page, plain],
        "routes": [], "queries": [], "actions": [],
        "policies": [
            {"name": "pages", "entity": "Page",
             "allowRead": "data.open || auth.userId == data.ownerId", "allowWrite": "true"},
            {"name": "plain", "entity": "Plain", "allow": "true"},
        ],
    }


def pages_manifest(search: dict[str, Any] | None = SEARCH) -> Manifest:
    return parse_manifest(orjson.dumps(pages_app(search)).decode(), "test.json")


def checked(path: Path, manifest: Manifest) -> SearchCheck:
    """The index of `Page` in the file, compared with the rows by a connection of its own."""
    conn = apsw.Connection(str(path))
    try:
        with conn:
            return check(conn, manifest.by_name["Page"])
    finally:
        conn.close()


def words_of(text: str) -> list[str]:
    """Letters and digits in runs, without case and accents."""
    plain = "".join(
        c for c in unicodedata.normalize("NFD", text) if not unicodedata.combining(c)
    )
    return re.findall(r"[^\W_]+", plain.lower())


def is_hit(row: Mapping[str, Any], query: str) -> bool:
    """Whether a page has all words of a query; the last may be the beginning of one."""
    asked = [words_of(word) for word in query.split()]
    if not asked:
        return True
    if not any(asked):
        return False
    last = re.findall(r"[^\W_]+", query.split()[-1])[-1:]
    open_end = not query[-1].isspace() and any(len(r) > 1 or r > "\u2e80" for r in last)
    texts = [words_of(str(row[f])) for f in SEARCH["text"] if row[f] is not None]
    return all(
        any(_has_phrase(text, phrase, open_end and phrase is asked[-1]) for text in texts)
        for phrase in asked if phrase
    )


def _has_phrase(text: list[str], phrase: list[str], open_end: bool) -> bool:
    for start in range(len(text) - len(phrase) + 1):
        found = text[start:start + len(phrase)]
        last = found[-1].startswith(phrase[-1]) if open_end else found[-1] == phrase[-1]
        if found[:-1] == phrase[:-1] and last:
            return True
    return False
