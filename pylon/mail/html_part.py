"""HTML part: lays the text of a mail out as HTML, for kinds of mail without a file of their own.

It works on the template, before the values are known: `templates` then fills in escaped values. An
empty line ends a paragraph. A code that stands alone becomes large, and a link that stands alone a
button above its text, so that it can also be copied. A link within a sentence is a link.

Invariants: the part loads nothing from elsewhere, and says what the text says. The colour of the
app is that of a border only, so every text has its full contrast. Called by `templates`.
"""

from __future__ import annotations

import html
import re
from typing import Final

_PARAGRAPHS: Final = re.compile(r"\n\s*\n")
_URL: Final = re.compile(r"\{\{\s*url\s*\}\}")
_CODE: Final = re.compile(r"\{\{\s*code\s*\}\}")
_LINK: Final = '<a href="{{url}}" style="color:#111;word-break:break-all">{{url}}</a>'
_BODY: Final = (
    "margin:0;padding:24px;background:#fff;color:#111;"
    "font:16px/1.5 system-ui,-apple-system,'Segoe UI',Roboto,sans-serif"
)
_BUTTON: Final = (
    "display:inline-block;padding:10px 22px;border:2px solid %s;border-radius:6px;color:#111;"
    "font-weight:600;text-decoration:none"
)
_DIGITS: Final = (
    "margin:0 0 16px;padding:12px 0;border-left:4px solid %s;padding-left:16px;"
    "font:700 28px/1.2 ui-monospace,Menlo,Consolas,monospace;letter-spacing:4px"
)


def html_part(text: str, accent: str) -> str:
    """Return the template of the HTML part of a text.

    Args:
        text: the template of the text, which was checked.
        accent: the app's colour, as ``#rrggbb``.
    """
    parts = [_part(part, accent) for part in _PARAGRAPHS.split(text) if part.strip()]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1"></head>'
        f'<body style="{_BODY}"><div style="max-width:560px;margin:0 auto">'
        f'{"".join(parts)}</div></body></html>\n'
    )


def _part(part: str, accent: str) -> str:
    bare = part.strip()
    if _CODE.fullmatch(bare):
        return f'<p style="{_DIGITS % accent}">{bare}</p>'
    if _URL.fullmatch(bare):
        return (
            f'<p style="margin:0 0 16px"><a href="{{{{url}}}}" style="{_BUTTON % accent}">'
            f'Open the link</a></p><p style="margin:0 0 16px;font-size:13px">{_LINK}</p>'
        )
    lines = "<br>".join(html.escape(line.strip()) for line in bare.splitlines())
    return f'<p style="margin:0 0 16px">{_URL.sub(_LINK, lines)}</p>'
