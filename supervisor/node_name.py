"""The name of a node: what PYLON_NODE says, else the host name and four random hexadecimal digits.

The name is made once and kept in a file of the data directory, so that a node has the same name
after a restart. A node without other nodes needs none. Called by `supervisor.main`, which holds the
lock of the data directory or is about to take it.
"""

from __future__ import annotations

import re
import socket
from dataclasses import replace
from typing import Final

from pylon.clock import RandomSource
from pylon.config import Config, Loaded
from pylon.disk_errors import start_error
from pylon.setting_values import node_name

_FILE: Final = "node"
_UNFIT: Final = re.compile(r"[^A-Za-z0-9.-]+")
_HOST_CHARS: Final = 48
_DIGITS_BYTES: Final = 2


def with_node_name(loaded: Loaded, random: RandomSource) -> Loaded:
    """Return the settings with the name of this node, if other nodes can share its database.

    Raises:
        StartDelayed: the file of the name cannot be written.
    """
    config = loaded.config
    if config.database_url is None or config.node is not None:
        return loaded
    name = _kept_name(config, random)
    return replace(
        loaded, config=replace(config, node=name), raw={**loaded.raw, "PYLON_NODE": name}
    )


def _kept_name(config: Config, random: RandomSource) -> str:
    path = config.data_dir / _FILE
    try:
        return node_name(path.read_text().strip())
    except (OSError, ValueError):  # there is none yet, or it is damaged
        name = _new_name(random)
    unfinished = path.with_name(f"{_FILE}.part")
    try:
        unfinished.write_text(f"{name}\n")
        unfinished.replace(path)
    except OSError as ex:
        raise start_error(ex, path) from ex
    return name


def _new_name(random: RandomSource) -> str:
    host = _UNFIT.sub("-", socket.gethostname()).strip("-.")[:_HOST_CHARS] or "node"
    return f"{host}-{random.token_hex(_DIGITS_BYTES)}"


