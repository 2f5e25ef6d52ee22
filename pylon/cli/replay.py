"""`pylonctl replay FILE`: runs the recording of a shard again and compares its states.

`pylon.realtime.replay` does the work; this verb loads the app and prints the outcome.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

import click
import msgspec

from pylon.cli.output import ERROR, json_flag, result
from pylon.cli.settings import dev_flag, read_settings
from pylon.errors import RecordingInvalid, StartRefused
from pylon.realtime.app_module import load_app_module
from pylon.realtime.kinds import kind_of, kinds
from pylon.realtime.replay import Outcome, read_beginning
from pylon.realtime.replay import replay as run

_ENDS: Final = {
    "end": "the shard's end", "full": "where the recording was full",
    "cut": "where the process died",
}


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--app", help="The app's Python file, instead of PYLON_APP.")
@dev_flag
@json_flag
@click.pass_context
def replay(ctx: click.Context, file: Path, app: str | None, dev: bool) -> None:
    """Run a recorded shard again. Exit code 1 if it comes to another state."""
    path = app or read_settings(dev=dev).config.app
    if path is None:
        raise StartRefused("no app: set PYLON_APP, or give --app")
    load_app_module(Path(path))
    beginning = read_beginning(file)
    kind = kind_of(beginning.name)
    if kind is None:
        raise RecordingInvalid(
            f'{file} is of the shard "{beginning.name}"; {path} has '
            + (", ".join(sorted(kinds())) or "no shards")
        )
    outcome = run(file, kind)
    result(msgspec.to_builtins(outcome), _text(outcome))
    ctx.exit(0 if outcome.differs_at is None else ERROR)


def _text(outcome: Outcome) -> str:
    done = f"{outcome.id}: {outcome.ticks} ticks, {outcome.inputs} inputs"
    if outcome.differs_at is not None:
        return f"{done}; at tick {outcome.differs_at} it comes to another state than it did"
    return f"{done}, {outcome.digests} states compared and equal, up to {_ENDS[outcome.ended]}"
