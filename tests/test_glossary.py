"""Public names are made of the words of ARCHITECTURE's glossary and of plain English words.

A new word needs an entry in the glossary, or a line in `corpora/plain_words.txt`. The second
list holds words that mean in Pylon what they mean everywhere. Metaphors belong to neither.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
PACKAGES = ("pylon", "workers", "supervisor", "tests")
MAX_TERMS = 60
METAPHORS = frozenset({
    "aside", "company", "desk", "door", "eyes", "farewell", "greeter", "house", "keeper", "knock",
    "luck", "morsel", "reception", "seat", "taster", "tasting", "visitor", "wishes",
})
_WORD = re.compile(r"[A-Z]+(?=[A-Z][a-z]|[0-9_]|$)|[A-Z]?[a-z]+")


def glossary() -> list[str]:
    """Return the terms of the glossary, in its order."""
    text = (ROOT / "ARCHITECTURE.md").read_text()
    section = text.split("## Glossary\n", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"^\| ([a-z][a-z -]*) \|", section, re.MULTILINE)[1:]


def plain_words() -> list[str]:
    """Return the plain English words."""
    return (ROOT / "tests" / "corpora" / "plain_words.txt").read_text().split()


class Definition(NamedTuple):
    """A class or a function of a source file."""

    line: int
    name: str
    is_class: bool


@functools.cache
def sources() -> dict[Path, list[Definition]]:
    """Return the definitions of every source file; the parsed files take too much memory."""
    found = {}
    for package in PACKAGES:
        for path in sorted((ROOT / package).rglob("*.py")):
            found[path.relative_to(ROOT)] = [
                Definition(node.lineno, node.name, isinstance(node, ast.ClassDef))
                for node in ast.walk(ast.parse(path.read_text()))
                if isinstance(node, ast.ClassDef | ast.FunctionDef)
            ]
    return found


def words_of(name: str) -> list[str]:
    return [word.lower() for word in _WORD.findall(name)]


def stems(word: str) -> set[str]:
    """Return the word, and what it may be the plural of."""
    found = {word}
    if word.endswith("s"):
        found.add(word[:-1])
    if word.endswith("es"):
        found.add(word[:-2])
    if word.endswith("ies"):
        found.add(word[:-3] + "y")
    return found


def public_names() -> Iterator[tuple[str, str]]:
    """Yield (place, name) of each public class of the product, and of each module."""
    for path, definitions in sources().items():
        if path.parts[0] == "tests":
            continue
        for part in path.with_suffix("").parts:
            yield str(path), part.strip("_")
        for made in definitions:
            if made.is_class and not made.name.startswith("_"):
                yield f"{path}:{made.line}", made.name


def test_names_of_classes_and_modules_are_made_of_known_words() -> None:
    known = {word for term in glossary() for word in re.split("[ -]", term)} | set(plain_words())
    unknown = [
        f"{place}: {name} ({word})"
        for place, name in public_names() for word in words_of(name)
        if not stems(word) & known
    ]
    assert not unknown, "put the word into the glossary or the plain words, or use another:\n" + (
        "\n".join(unknown)
    )


def test_no_name_is_a_metaphor() -> None:
    found = [
        f"{path}:{made.line}: {made.name}"
        for path, definitions in sources().items() for made in definitions
        if not made.name.startswith("test_") and METAPHORS & set(words_of(made.name))
    ]
    assert not found, "\n".join(found)


def test_glossary_has_few_terms_in_order_and_each_once() -> None:
    terms = glossary()
    assert 30 <= len(terms) <= MAX_TERMS
    assert terms == sorted(set(terms))


def test_plain_words_are_used_sorted_and_no_terms() -> None:
    words = plain_words()
    assert words == sorted(set(words))
    assert not set(words) & set(glossary())
    assert not set(words) & METAPHORS
    used = {stem for _, name in public_names() for word in words_of(name) for stem in stems(word)}
    assert not set(words) - used, "remove words that no name has"
