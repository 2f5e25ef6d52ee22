"""Compares the figures of a run with the last committed run of the same machine.

    python bench/compare.py [FOLDER]        (bench/results/local, where `make bench` writes)

A run is a folder with what the tools wrote: `http_load.json`, which has the machine and the
yardstick, and `data_plane.json` and `fan_out.json` where those were run. A machine's speed varies
from day to day, so rates are compared as multiples of the yardstick that was measured in the same
run; memory is compared as it is. Committed runs are the folders beside FOLDER that git knows.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import machine

RESULTS = Path(__file__).parent / "results"
LOCAL = RESULTS / "local"
SUM = "all processes"


@dataclass(frozen=True)
class Figure:
    """A number of a run. `more` is better, unless it says less."""

    value: float
    unit: str
    more: bool = True
    scaled: bool = True  # goes with the speed of the machine


def main() -> int:
    """Print the comparison and write it as `compared.md`; exit code 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", nargs="?", type=Path, default=LOCAL)
    folder = parser.parse_args().folder
    if not (folder / "http_load.json").is_file():
        print(f"compare: {folder} has no http_load.json: run bench/http_load.py first (needs wrk)")
        return 0
    report = comparison(
        folder, [each for each in committed(RESULTS) if each.resolve() != folder.resolve()]
    )
    print(report)
    (folder / "compared.md").write_text(report + "\n")
    return 0


def committed(results: Path) -> list[Path]:
    """The folders of results that git knows."""
    done = subprocess.run(
        ["git", "-C", str(results), "ls-files", "--", "*/http_load.json"],
        capture_output=True, text=True, check=False,
    )
    return [results / Path(line).parent for line in done.stdout.splitlines()]


def comparison(folder: Path, earlier: list[Path]) -> str:
    """The figures of `folder` beside those of the newest of `earlier` on the same machine."""
    now = _read(folder)
    head = [f"Measured {now['at']} on {machine.text(now['machine'])}; the yardstick makes "
            f"{yardstick(now):,.0f} requests/s."]
    runs = [run for run in map(_read, earlier) if run.get("machine") == now["machine"]]
    before = max(runs, key=lambda run: str(run["at"]), default=None)
    if before is None:
        head.append(
            f"No committed result is of this machine ({len(earlier)} of other machines, or "
            "without a fingerprint): there is nothing to compare with."
        )
        known: dict[str, Figure] = {}
        speed = 1.0
    else:
        known = figures(before)
        speed = yardstick(now) / yardstick(before)
        head.append(f"Before: {before['at']}, yardstick {yardstick(before):,.0f} requests/s. "
                    f"Ratios above 1 are better; rates are taken as multiples of the yardstick.")
    rows = ["| figure | before | now | ratio |", "|---|---|---|---|"]
    for name, figure in figures(now).items():
        old = known.get(name)
        was = "-" if old is None else f"{old.value:,.6g}"
        rows.append(f"| {name}, {figure.unit} | {was} | {figure.value:,.6g} | "
                    f"{'-' if old is None else ratio(old, figure, speed)} |")
    return "\n\n".join([*head, "\n".join(rows)])


def ratio(before: Figure, now: Figure, speed: float) -> str:
    """How much better `now` is, as a factor. `speed`: of the machine, now against then."""
    if not before.value or not now.value:
        return "-"
    factor = now.value / before.value if now.more else before.value / now.value
    return f"{factor / speed if now.scaled else factor:.2f}"


def yardstick(run: dict[str, Any]) -> float:
    """Requests/s of the yardstick, of all its lines."""
    return statistics.fmean(
        line["requests_per_s"] for line in run["requests"] if line.get("yardstick")
    )


def figures(run: dict[str, Any]) -> dict[str, Figure]:
    """Every figure of a run that can be compared, by name."""
    out: dict[str, Figure] = {}
    for line in run["requests"]:
        if not line.get("yardstick"):
            name = f"{line['name']}, {line['connections']} connections"
            out[name] = Figure(line["requests_per_s"], "requests/s")
    for name, usage in run["processes"].items():
        if name.startswith(SUM):
            out[f"RSS, {name}"] = Figure(usage["rss_loaded_mib"], "MiB", more=False, scaled=False)
    for row in run.get("operations", ()):
        if row["ops_per_s"] is not None:
            out[row["operation"]] = Figure(row["ops_per_s"], "ops/s")
    for each in run.get("runs", ()):
        name = f"fan-out {each['scenario']}, {each['transport']}"
        if "deliveries_per_s" in each:
            out[name] = Figure(each["deliveries_per_s"], "deliveries/s")
    return out


def _read(folder: Path) -> dict[str, Any]:
    """What the tools wrote into `folder`, together."""
    out: dict[str, Any] = {}
    for name in ("data_plane", "fan_out", "http_load"):
        path = folder / f"{name}.json"
        if path.is_file():
            out |= json.loads(path.read_text())
    return out


if __name__ == "__main__":
    sys.exit(main())
