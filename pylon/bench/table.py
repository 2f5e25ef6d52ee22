"""Table: formats the result of `pylonctl bench` as text, JSON and Markdown.

Called by `pylonctl bench`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from pylon.bench.measure import Measured


@dataclass(frozen=True, slots=True)
class BenchReport:
    """The lines, and the versions and machine of the run."""

    version: str
    python: str
    sqlite: str
    machine: str
    budget_s: float
    rows: tuple[Measured, ...]


def render(report: BenchReport) -> str:
    """Return the table as text: operation, ops/s, µs/op."""
    width = max(len(row.name) for row in report.rows)
    lines = [
        f"Pylon {report.version}, Python {report.python}, SQLite {report.sqlite}, "
        f"{report.machine}; {report.budget_s:g} s for each, median of three.",
        "One process, no network: a write counts its validation, encoding and its share of a",
        "transaction of 64 requests, as the writer has with 64 concurrent callers.",
        "",
        f"{'operation':<{width}}  {'ops/s':>12}  {'µs/op':>10}",
    ]
    for row in report.rows:
        ops = "-" if row.ops_per_s is None else f"{row.ops_per_s:,.0f}"
        us = "-" if row.us_per_op is None else f"{row.us_per_op:,.2f}"
        lines.append(f"{row.name:<{width}}  {ops:>12}  {us:>10}  {row.note}".rstrip())
    return "\n".join(lines)


def to_json(report: BenchReport) -> dict[str, Any]:
    return {
        "version": report.version, "python": report.python, "sqlite": report.sqlite,
        "machine": report.machine, "budget_s": report.budget_s,
        "operations": [
            {
                "operation": row.name,
                "ops_per_s": None if row.ops_per_s is None else round(row.ops_per_s, 1),
                "us_per_op": None if row.us_per_op is None else round(row.us_per_op, 3),
                "note": row.note,
            }
            for row in report.rows
        ],
    }


def save(report: BenchReport, folder: Path) -> None:
    """Write `data_plane.json` and `data_plane.md` into `folder`; make the folder if it is missing.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = orjson.dumps(to_json(report), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    (folder / "data_plane.json").write_bytes(text)
    (folder / "data_plane.md").write_text(_markdown(report))


def _markdown(report: BenchReport) -> str:
    lines = [
        f"Data plane, Pylon {report.version}, Python {report.python}, SQLite {report.sqlite}, "
        f"{report.machine}; {report.budget_s:g} s for each, median of three.", "",
        "| operation | ops/s | µs/op | |", "|---|---|---|---|",
    ]
    for row in report.rows:
        ops = "-" if row.ops_per_s is None else f"{row.ops_per_s:,.0f}"
        us = "-" if row.us_per_op is None else f"{row.us_per_op:,.2f}"
        lines.append(f"| {row.name} | {ops} | {us} | {row.note} |")
    return "\n".join(lines) + "\n"
