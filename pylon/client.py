"""`pylon.client`: the Python client (`pylon_client`), where the server is installed with it.

The client is a distribution of its own, `pylon-client`, which needs no part of the server. This
module only gives its names, so that an app that has both writes ``from pylon.client import Pylon``.
Called by apps.
"""

from __future__ import annotations

try:
    from pylon_client import *  # noqa: F403
except ModuleNotFoundError as ex:
    if ex.name != "pylon_client":
        raise
    raise ModuleNotFoundError(
        "pylon.client needs the package pylon-client: "
        "pip install ./clients/python, in the repository of Pylon", name="pylon_client",
    ) from ex
