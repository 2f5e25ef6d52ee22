"""What a server's processes do not load before somebody uses it, if ever.

A Pylon is seven processes and more, so each module that they import and do not need is paid for
seven times. Many come with libraries that only might use them: TLS (nobody here speaks it: a
proxy does), asyncio, the metadata of installed distributions. `defer` leaves stand-ins for
these, which load the real modules when they are asked for anything. `mentioning` is for
libraries that ask while they are imported, for values that they will not use here.

Invariant: whoever uses such a module gets it, and notices nothing but the moment of loading.
`defer` is called first thing by each process's `__main__`, before anything that imports them.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from types import ModuleType
from typing import Any, Final

_ON_USE: Final = (
    "argparse", "ast", "asyncio", "difflib", "email.utils", "html", "importlib.metadata", "ssl",
)
_SHA256: Final = ("_sha256", "_sha2")  # CPython's own; the second name from 3.12 on


def defer() -> None:
    """Leave stand-ins. What has been imported already stays as it is."""
    if any(find_spec(name) is not None for name in _SHA256):
        # hashlib then takes CPython's own functions: OpenSSL's are 3.5 MiB for a SHA-256 of a
        # token. `ssl` does not need `_hashlib`.
        sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]  # means: not there
    for name in _ON_USE:
        _stand_in(name)


@contextmanager
def mentioning(name: str, **values: object) -> Iterator[None]:
    """For the import of a library that wants `values` of the module `name` and no more.

    Where the module has been loaded already it is left alone.
    """
    stand_in = _stand_in(name)
    if stand_in is None:
        yield
        return
    stand_in.__dict__.update(values)
    try:
        yield
    finally:
        for each in values:
            del stand_in.__dict__[each]


def _stand_in(name: str) -> _StandIn | None:
    """The stand-in for a module, made if need be; None where the module itself is there."""
    known = sys.modules.get(name)
    if known is None:
        known = sys.modules[name] = _StandIn(name)
        package, _, own = name.rpartition(".")
        if package:
            setattr(importlib.import_module(package), own, known)
    return known if isinstance(known, _StandIn) else None


class _StandIn(ModuleType):
    """A module that is loaded when it is asked for an attribute.

    (importlib's LazyLoader makes modules that a second `import` loads.)
    """

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("__"):
            raise AttributeError(attribute)  # the import system looks around
        name = self.__name__
        if sys.modules.get(name) is self:
            del sys.modules[name]
        loaded = importlib.import_module(name)
        if name == "ssl":
            _patch_ssl()
        return getattr(loaded, attribute)


def _patch_ssl() -> None:
    """What `workers.patch` has put off."""
    monkey = sys.modules.get("gevent.monkey")
    if monkey is not None and monkey.is_module_patched("socket"):
        monkey.patch_ssl()
