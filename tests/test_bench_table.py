"""`pylonctl bench` measures every line, with our fixture and with a manifest of the user's."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pylon.bench import rows
from pylon.bench.measure import Measured, measure
from pylon.bench.table import BenchReport, render, save, to_json
from pylon.clock import ManualClock
from pylon.manifest_loader import load_manifest
from pylon.values import EntityCodec

TODO = Path(__file__).parent.parent / "examples" / "todo" / "pylon.manifest.json"


def test_rate_is_the_median_of_three() -> None:
    clock = ManualClock()
    durations_s = iter([8.0, 0.125, 0.5, 0.25])  # the first call warms up

    def step() -> int:
        clock.advance(next(durations_s))
        return 1

    found = measure("x", step, 0.375, clock)
    assert found.ops_per_s == pytest.approx(4.0)
    assert found.us_per_op == pytest.approx(250_000)


def test_made_up_rows_are_valid_and_distinct_where_they_must_be() -> None:
    for manifest in (rows.fixture(), load_manifest(TODO)):
        for entity in manifest.entities:
            codec = EntityCodec(entity)
            made = [codec.insert(rows.body_maker(entity)(n), f"{n:040x}").row for n in range(300)]
            for field in entity.fields:
                if field.unique:
                    assert len({row[field.name] for row in made}) == len(made)
    todo = load_manifest(TODO).by_name
    unique, grouped, text = (
        rows.unique_field(todo["User"]), rows.grouped_field(todo["Todo"]),
        rows.text_field(todo["Todo"]),
    )
    assert unique is not None and unique.name == "email"
    assert grouped is not None and grouped.name == "authorId"
    assert text is not None and text.name == "title"


def test_table_shows_what_was_not_measured() -> None:
    report = BenchReport("1", "3.11", "3.50", "x", 1.0, (
        Measured("one", 2_000_000.0), Measured("two", None, "not built yet"),
    ))
    text = render(report)
    assert "2,000,000        0.50" in text
    assert "not built yet" in text
    assert to_json(report)["operations"][0]["us_per_op"] == 0.5
    assert to_json(report)["operations"][1]["ops_per_s"] is None


def test_the_table_is_kept_as_json_and_as_markdown(tmp_path: Path) -> None:
    report = BenchReport("1", "3.11", "3.50", "x", 1.0, (Measured("one", 2_000_000.0),))
    save(report, tmp_path / "new")
    assert json.loads((tmp_path / "new" / "data_plane.json").read_text()) == to_json(report)
    assert "| one | 2,000,000 | 0.50 |  |" in (tmp_path / "new" / "data_plane.md").read_text()


@pytest.mark.parametrize("manifest", [None, TODO])
@pytest.mark.usefixtures("processes")
def test_every_line_of_the_table(manifest: Path | None) -> None:
    chosen = [] if manifest is None else ["--manifest", str(manifest)]
    done = subprocess.run(
        [sys.executable, "-m", "pylon.cli.main", "bench", "--json", "--seconds", "0.05", *chosen],
        capture_output=True, text=True, timeout=100, check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = {row["operation"]: row["ops_per_s"] for row in json.loads(done.stdout)["operations"]}
    assert [name for name, ops in lines.items() if not ops] == []
    for name in ("update", "delete + reinsert", "get_by_id", "bare apsw get",
                 "lookup by unique field", "bare apsw lookup", "query equality", "query $like",
                 "list 1000", "graph 1000", "change log append", "pull(100)",
                 "hub broadcast enqueue"):
        assert name in lines
    inserts = sum(name.startswith("insert, ") for name in lines)
    assert inserts == (3 if manifest is None else 2)
