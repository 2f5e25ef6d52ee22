"""`pylonctl man`: prints the manual page, made from the verbs and options of click.

The text is roff with the macros of man(7). `pylonctl install-systemd` writes it to
`/usr/local/share/man`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

import click

from pylon import __version__
from pylon.cli.output import json_flag, result

PLACE: Final = "usr/local/share/man/man1/pylonctl.1"
_COMMON: Final = {"--json", "--env-file", "--help"}  # options of every verb, described once
_FILES: Final = (
    ("/etc/pylon/pylon.env", "Settings of the server, unless --env-file or PYLON_ENV_FILE names "
     "another file."),
    ("/var/lib/pylon/pylon.db", "The database of an installation by install-systemd."),
)
_STATUS: Final = (
    ("0", "Success."), ("1", "The verb failed."), ("64", "The command line is wrong."),
    ("69", "No server answers."), ("70", "The writer of the server broke."),
    ("75", "Try again: a drain was cut short, or a disk is full."),
    ("78", "The configuration is refused."),
)


@click.command()
@json_flag
@click.pass_context
def man(ctx: click.Context) -> None:
    """Print the manual page: `pylonctl man | man -l -`."""
    text = manual_page(ctx.find_root())
    result({"page": text}, text.rstrip("\n"))


def manual_page(root: click.Context) -> str:
    """Return the manual page of the command of a context."""
    cli = root.command
    assert isinstance(cli, click.Group)
    lines = [
        f'.TH PYLONCTL 1 "" "Pylon {__version__}" "Pylon"', ".SH NAME",
        r"pylonctl \- run and operate a Pylon server", ".SH SYNOPSIS",
        r".B pylonctl", r"[\fIoptions\fR] \fIverb\fR [\fIarguments\fR]", ".SH DESCRIPTION",
        _escape(cli.help or ""), ".SH OPTIONS",
        "These options stand before the verb or behind it.", *_entries(_common_options(root)),
        ".SH VERBS",
    ]
    for name in cli.list_commands(root):
        command = cli.get_command(root, name)
        if command is not None:
            lines += _verb(command, click.Context(command, root, info_name=name), name)
    lines += [".SH EXIT STATUS", *_entries(_STATUS), ".SH FILES", *_entries(_FILES)]
    return "\n".join(lines) + "\n"


def _verb(command: click.Command, ctx: click.Context, name: str) -> Iterator[str]:
    usage = " ".join(command.collect_usage_pieces(ctx))
    yield f'.SS "{_escape(f"{name} {usage}")}"'
    yield from _paragraphs(command.help or "")
    yield from _options(ctx)
    if isinstance(command, click.Group):
        for inner in command.list_commands(ctx):
            found = command.get_command(ctx, inner)
            if found is not None:
                inner_ctx = click.Context(found, ctx, info_name=inner)
                yield from _verb(found, inner_ctx, f"{name} {inner}")


def _common_options(ctx: click.Context) -> list[tuple[str, str]]:
    records = [
        param.get_help_record(ctx) for param in ctx.command.get_params(ctx)
        if _COMMON & set(param.opts)
    ]
    return [record for record in records if record is not None]


def _options(ctx: click.Context) -> Iterator[str]:
    for param in ctx.command.get_params(ctx):
        record = param.get_help_record(ctx)
        if record is not None and not _COMMON & set(param.opts):
            yield from _entries([record])


def _entries(pairs: object) -> Iterator[str]:
    assert isinstance(pairs, list | tuple)
    for name, text in pairs:
        yield ".TP"
        yield f".B {_escape(name)}"
        yield _escape(text)


def _paragraphs(text: str) -> Iterator[str]:
    for paragraph in text.split("\n\n"):
        yield ".PP"
        yield _escape(paragraph.replace("\b\n", ""))


def _escape(text: str) -> str:
    """Return a text as one line of roff that reads as it is."""
    text = re.sub(r"\s+", " ", text).strip().replace("\\", r"\e").replace("-", r"\-")
    text = text.replace('"', r"\(dq")
    text = "".join(c if c.isascii() else f"\\[u{ord(c):04X}]" for c in text)
    return rf"\&{text}" if text.startswith((".", "'")) else text
