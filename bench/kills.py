"""Kills: the events that published clients miss when processes die, or the server restarts.

    python bench/kills.py [--rounds 50] [--clients 40] [--seed 1] [--kinds KIND …] [--out FOLDER]

The rounds take the kinds of death in turn (`tests/support/kill_rounds.py`): all pairs of roles
within half a second, the whole server by `kill -9`, and a restart in order, with connections that
wait in the listener's backlog, as with systemd's socket units. Writes go on throughout. Exit code
1 when a client missed an event.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent))
import machine

from tests.support.kill_rounds import KINDS, Report, Trial


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--clients", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    reports: list[Report] = []
    with (
        tempfile.TemporaryDirectory(prefix="pylon-kills-") as folder,
        Trial(Path(folder), args.clients, args.seed).running() as trial,
    ):
        for number in range(args.rounds):
            report = trial.round(args.kinds[number % len(args.kinds)])
            reports.append(report)
            print(f"{number + 1}/{args.rounds} {_text(report)}", flush=True)
    print(_table(reports))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        whole = {"machine": machine.fingerprint(), "clients": args.clients,
                 "rounds": [asdict(report) for report in reports]}
        (args.out / "kills.json").write_text(json.dumps(whole, indent=2) + "\n")
        (args.out / "kills.md").write_text(_table(reports) + "\n")
    return 1 if any(report.missed for report in reports) else 0


def _text(report: Report) -> str:
    return (
        f"{report.kind}: {report.events} events, {report.reconnects} reconnects, "
        f"{sum(report.missed.values())} missed by {len(report.missed)} clients, "
        f"{report.took_s} s"
    )


def _table(reports: list[Report]) -> str:
    lines = ["| deaths | rounds | events | reconnects | events missed | clients that missed |",
             "|---|---|---|---|---|---|"]
    for kind in dict.fromkeys(report.kind for report in reports):
        of_kind = [report for report in reports if report.kind == kind]
        lines.append(
            f"| {kind} | {len(of_kind)} | {sum(r.events for r in of_kind)} | "
            f"{sum(r.reconnects for r in of_kind)} | "
            f"{sum(sum(r.missed.values()) for r in of_kind)} | "
            f"{sum(len(r.missed) for r in of_kind)} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
