"""`pylonctl explain`: prints the meaning of an error code and its remedy (`pylon.catalogue`)."""

from __future__ import annotations

import textwrap
from typing import Final

import click

from pylon.catalogue import Entry, entries, entry, nearest
from pylon.cli.output import json_flag, result
from pylon.errors import NotFound

_WIDTH: Final = 88


@click.command()
@click.argument("code", required=False)
@json_flag
def explain(code: str | None) -> None:
    """Explain an error CODE; without one, list them all."""
    if code is None:
        known = entries()
        width = max(len(e.code) for e in known)
        result(
            {"codes": [e.to_json() for e in known]},
            "\n".join(f"{e.code:<{width}}  {_first_sentence(e)}" for e in known),
        )
        return
    found = entry(code)
    if found is None:
        near = nearest(code)
        raise NotFound(
            f"There is no code {code}",
            hint=f"did you mean {near}?" if near else "pylonctl explain lists all codes",
        )
    result(found.to_json(), _page(found))


def _first_sentence(found: Entry) -> str:
    return found.explanation.partition(". ")[0].rstrip(".")


def _page(found: Entry) -> str:
    facts = []
    if found.status is not None:
        facts.append(f"HTTP {found.status}")
    if found.kind == "manifest":
        facts.append("manifest diagnostic")
    facts.append("the same request may succeed later" if found.retryable else
                 "the same request fails again")
    return "\n".join((
        f"{found.code}  ({', '.join(facts)})", "",
        textwrap.fill(found.explanation, _WIDTH), "",
        textwrap.fill(f"Remedy: {found.remedy}", _WIDTH),
    ))
