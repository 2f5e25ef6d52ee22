"""`pylonctl bench`: measures the operations of the data plane on this machine (`pylon.bench`)."""

from __future__ import annotations

from pathlib import Path

import click

from pylon.cli.output import json_flag, note, result, wants_json


@click.command()
@click.option(
    "--manifest", "manifest_path", type=click.Path(path_type=Path),
    help="Measure this app's entities instead of the built-in fixture.",
)
@click.option(
    "--seconds", "budget_s", type=click.FloatRange(0.05, 60.0), default=1.0, show_default=True,
    help="How long each row of the table is measured for.",
)
@click.option(
    "--out", type=click.Path(path_type=Path, file_okay=False),
    help="Write data_plane.json and data_plane.md into this folder as well.",
)
@json_flag
def bench(manifest_path: Path | None, budget_s: float, out: Path | None) -> None:
    """Measure each operation of the data plane: ops/s and µs/op, median of three."""
    # Imported here, so that the help of `pylonctl` does not load the benchmark and gevent.
    from pylon.bench.run import run
    from pylon.bench.table import render, save, to_json

    progress = None if wants_json() else lambda name: note(f"measuring {name}")
    report = run(manifest_path, budget_s, progress)
    if out is not None:
        save(report, out)
    result(to_json(report), render(report))
