"""Write docs/errors.md from the error catalogue: python docs/errors_page.py"""

from __future__ import annotations

from pathlib import Path

from pylon.catalogue import Entry, entries

PAGE = Path(__file__).parent / "errors.md"
HEAD = """# Errors

<!-- written by docs/errors_page.py from the docstrings of pylon/errors/ -->

Every error is `{"error": {"code", "message", "hint"?, ...}}`. The code is stable, the message is
for people, `hint` says how to mend it. `pylonctl explain CODE` prints these paragraphs. Where
"again" is yes the same request may succeed if it is sent again, and the answer has `Retry-After`.
"""


def page() -> str:
    """The page as Markdown."""
    known = entries()
    parts = [HEAD, "\n## Over HTTP, and from `pylonctl`\n"]
    parts += [_paragraph(e) for e in known if e.kind == "error"]
    parts.append("\n## Diagnostics of the manifest\n")
    parts += [_paragraph(e) for e in known if e.kind == "manifest"]
    return "".join(parts)


def _paragraph(entry: Entry) -> str:
    facts = [f"status {entry.status}"] if entry.status is not None else []
    if entry.kind == "error":
        facts.append(f"again: {'yes' if entry.retryable else 'no'}")
    note = f" ({', '.join(facts)})" if facts else ""
    return f"\n**`{entry.code}`**{note}: {entry.explanation}\nRemedy: {entry.remedy}\n"


if __name__ == "__main__":
    PAGE.write_text(page())
