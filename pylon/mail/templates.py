"""Templates: the texts of an app's mails, and their rendering.

The text of a kind comes from PYLON_EMAIL_TEMPLATE_<KIND>_SUBJECT and _BODY, else from the files
`<kind>.txt` and `<kind>.html` in the folder PYLON_EMAIL_TEMPLATES, else from `kinds`. A text file
may begin with a line `Subject: ...` and an empty line. Without a file the HTML part is the text,
laid out by `html_part`; with PYLON_EMAIL_HTML=false there is none.

A template can do one thing: `{{name}}` becomes the value. So no value can run anything. Values are
cut to `MAIL_VALUE_CHARS` characters, except links and codes, which the server makes. Control
characters become spaces. Values are escaped in HTML. What people chose (names, devices) cannot
begin a link.

Invariant: a template that names an unknown variable, or lacks a needed one, is refused at the
start. Called by `pylon.startup`, `outbox` and `pylonctl mail`.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from pylon.config import Config
from pylon.errors import StartRefused
from pylon.limits import MAIL_TEMPLATE_BYTES, MAIL_VALUE_CHARS
from pylon.mail.html_part import html_part
from pylon.mail.kinds import KIND_BY_NAME, KINDS, MailKind

SETTING_PREFIX: Final = "PYLON_EMAIL_TEMPLATE_"
_VARIABLE: Final = re.compile(r"\{\{\s*([^{}]*?)\s*\}\}")
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]+")
_LINK_START: Final = re.compile(r"://|\bwww\.", re.IGNORECASE)
_OWN: Final = frozenset({"code", "url"})  # made by the server: not cut
_ADDRESSES: Final = frozenset({"email", "new_email"})


@dataclass(frozen=True, slots=True)
class Template:
    """The text of one kind of mail. `html` is None without an HTML part."""

    subject: str
    text: str
    html: str | None = None

    def render(self, values: Mapping[str, str]) -> Rendered:
        """Return the mail with each variable replaced; a variable without a value is empty."""
        shown = {name: _clean(name, value) for name, value in values.items()}
        escaped = {name: html.escape(value) for name, value in shown.items()}
        subject = _CONTROL.sub(" ", _fill(self.subject, shown)).strip()
        return Rendered(
            subject, _fill(self.text, shown),
            None if self.html is None else _fill(self.html, escaped),
        )


@dataclass(frozen=True, slots=True)
class Rendered:
    """A rendered template."""

    subject: str
    text: str
    html: str | None


def load_templates(config: Config) -> Mapping[str, Template]:
    """Return the template of each kind, by its name.

    Raises:
        StartRefused: a text or file names an unknown kind or variable, lacks a needed one, or
            cannot be read.
    """
    files = _read_folder(config)
    _refuse_unknown_settings(config.email_templates)
    templates = {}
    for kind in KINDS:
        subject, subject_from = kind.subject, "the built-in subject"
        text, text_from = kind.text, "the built-in text"
        given = files.get(f"{kind.name.lower()}.txt")
        if given is not None:
            text, text_from = given, f"{kind.name.lower()}.txt"
            first, _, rest = given.partition("\n")
            if first.lower().startswith("subject:"):
                subject, subject_from = first[len("subject:"):].strip(), text_from
                text = rest.lstrip("\r\n")
        for part in ("SUBJECT", "BODY"):
            name = f"{SETTING_PREFIX}{kind.name}_{part}"
            value = config.email_templates.get(name)
            if value is not None and part == "SUBJECT":
                subject, subject_from = value, name
            elif value is not None:
                text, text_from = value, name
        page_from = f"{kind.name.lower()}.html"
        page = files.get(page_from)
        _check(kind, subject, subject_from, ())
        _check(kind, text, text_from, kind.needs)
        if page is not None:
            _check(kind, page, page_from, kind.needs)
        elif config.email_html:
            page = html_part(text, config.auth_page_accent)
        templates[kind.name] = Template(subject, text, page)
    return templates


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _VARIABLE.sub(lambda match: values.get(match[1], ""), text)


def _clean(name: str, value: str) -> str:
    """Return a value without control characters, cut, and without the begin of a link."""
    value = _CONTROL.sub(" ", value)
    if name in _OWN:
        return value
    if name not in _ADDRESSES:
        value = _LINK_START.sub(" ", value)
    return value if len(value) <= MAIL_VALUE_CHARS else value[:MAIL_VALUE_CHARS - 1] + "\u2026"


def _check(kind: MailKind, text: str, where: str, needs: tuple[str, ...]) -> None:
    """Refuse a text with an unknown variable, or without a needed one."""
    named = _VARIABLE.findall(text)
    for name in named:
        if name not in kind.variables:
            raise StartRefused(
                f"{where}: a mail {kind.name} has no variable {name!r}; it has "
                f"{', '.join(sorted(kind.variables))}"
            )
    for name in needs:
        if name not in named:
            raise StartRefused(
                f"{where}: the text of a mail {kind.name} lacks {{{{{name}}}}}, so nobody could "
                "use the mail"
            )
    rest = _VARIABLE.sub("", text)
    if "{{" in rest or "}}" in rest:
        raise StartRefused(f"{where}: it has braces that belong to no variable: write {{{{name}}}}")


def _refuse_unknown_settings(given: Mapping[str, str]) -> None:
    for name in given:
        kind, _, part = name.removeprefix(SETTING_PREFIX).rpartition("_")
        if kind not in KIND_BY_NAME or part not in ("SUBJECT", "BODY"):
            raise StartRefused(
                f"{name} names no kind of mail: the kinds are {', '.join(KIND_BY_NAME)}, and the "
                "name ends in _SUBJECT or _BODY"
            )


def _read_folder(config: Config) -> dict[str, str]:
    if config.email_templates_folder is None:
        return {}
    folder = Path(config.email_templates_folder)
    known = {f"{kind.name.lower()}.{end}" for kind in KINDS for end in ("txt", "html")}
    files = {}
    for path in _files_of(folder):
        if path.name not in known:
            raise StartRefused(
                f"PYLON_EMAIL_TEMPLATES: {path} is the text of no mail: the files are "
                f"{', '.join(sorted(known))}"
            )
        try:
            raw = path.read_bytes()
            files[path.name] = raw.decode()
        except OSError as ex:
            raise StartRefused(
                f"PYLON_EMAIL_TEMPLATES: {path} cannot be read: {ex.strerror}"
            ) from ex
        except UnicodeDecodeError:
            raise StartRefused(f"PYLON_EMAIL_TEMPLATES: {path} is no UTF-8") from None
        if len(raw) > MAIL_TEMPLATE_BYTES:
            raise StartRefused(
                f"PYLON_EMAIL_TEMPLATES: {path} has more than {MAIL_TEMPLATE_BYTES} bytes"
            )
    return files


def _files_of(folder: Path) -> Iterator[Path]:
    try:
        yield from sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as ex:
        raise StartRefused(
            f"PYLON_EMAIL_TEMPLATES is {folder}, which cannot be read: {ex.strerror}"
        ) from ex
