"""Writes the tables of settings from `pylon.settings`: python docs/settings_table.py

The README has the table of all settings, docs/operations/upgrade.md what a change of each needs.
"""

from __future__ import annotations

from pathlib import Path

from pylon.settings import SETTINGS

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- settings: written by docs/settings_table.py -->\n"
END = "<!-- end of settings -->\n"
UPGRADE = Path(__file__).parent / "operations" / "upgrade.md"
CHANGES_BEGIN = "<!-- changes: written by docs/settings_table.py -->\n"
CHANGES_END = "<!-- end of changes -->\n"


def table() -> str:
    """The table as Markdown."""
    lines = ["| setting | default | in dev | |", "|---|---|---|---|"]
    for setting in SETTINGS:
        default = f"`{setting.default}`" if setting.default else ""
        dev = f"`{setting.dev_default}`" if setting.dev_default is not None else ""
        lines.append(f"| `{setting.env}` | {default} | {dev} | {setting.help} |")
    return "\n".join(lines) + "\n"


def with_table(readme: str) -> str:
    """The README with the table as it should be."""
    head, _, rest = readme.partition(BEGIN)
    _, _, tail = rest.partition(END)
    return head + BEGIN + table() + END + tail


def changes() -> str:
    """Return as Markdown how a change of each setting takes effect."""
    lines = ["| a change of | needs |", "|---|---|"]
    lines += [f"| `{setting.env}` | {setting.change} |" for setting in SETTINGS]
    return "\n".join(lines) + "\n"


def with_changes(page: str) -> str:
    """The page with the table as it should be."""
    head, _, rest = page.partition(CHANGES_BEGIN)
    _, _, tail = rest.partition(CHANGES_END)
    return head + CHANGES_BEGIN + changes() + CHANGES_END + tail


if __name__ == "__main__":
    UPGRADE.write_text(with_changes(UPGRADE.read_text()))
    README.write_text(with_table(README.read_text()))
