"""Writes the README's table of settings from `pylon.settings`: python docs/settings_table.py"""

from __future__ import annotations

from pathlib import Path

from pylon.settings import SETTINGS

README = Path(__file__).parent.parent / "README.md"
BEGIN = "<!-- settings: written by docs/settings_table.py -->\n"
END = "<!-- end of settings -->\n"


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


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
