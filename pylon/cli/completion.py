"""`pylonctl completion SHELL`: prints the script that lets a shell complete verbs and options.

click makes the script. `pylonctl install-systemd` writes the scripts of all shells into the folders
where the shells of Debian look.
"""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import get_completion_class

from pylon.cli.output import json_flag, result

PLACES: Final = {  # where each shell looks, below the root
    "bash": "usr/local/share/bash-completion/completions/pylonctl",
    "zsh": "usr/local/share/zsh/site-functions/_pylonctl",
    "fish": "usr/local/share/fish/vendor_completions.d/pylonctl.fish",
}
_VARIABLE: Final = "_PYLONCTL_COMPLETE"


@click.command()
@click.argument("shell", type=click.Choice(list(PLACES)))
@json_flag
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print a completion script: `source <(pylonctl completion bash)`."""
    text = completion_script(ctx.find_root().command, shell)
    result({"shell": shell, "script": text}, text.rstrip("\n"))


def completion_script(cli: click.Command, shell: str) -> str:
    """Return the script of a shell."""
    kind = get_completion_class(shell)
    assert kind is not None, shell
    return kind(cli, {}, "pylonctl", _VARIABLE).source() + "\n"
