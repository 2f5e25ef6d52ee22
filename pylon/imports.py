"""What a server's processes do not load before somebody uses it, if ever.

A Pylon is seven processes and more, so each module that they import and do not need is paid for
seven times. Many come with libraries that only might use them: TLS (nobody here speaks it: a
proxy does), asyncio, the metadata of installed distributions. `defer` leaves stand-ins for
these, which load the real modules when they are asked for anything (so say ``import loro``, and
``loro.LoroDoc`` where it is used). `mentioning` is for
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
from threading import Lock
from types import ModuleType
from typing import Any, Final

_ON_USE: Final = (
    "argparse", "difflib", "email.utils", "html", "importlib.metadata", "inspect", "loro",
    "pickle", "shutil", "ssl", "subprocess", "tempfile", "xml.etree.ElementTree",
)
_PACKAGES: Final = frozenset({"asyncio", "html", "importlib.metadata", "loro"})
# What gevent does to them when it patches all; `pylon.runtime.gevent_patch` puts it off until they
# are loaded.
_PATCHES: Final = {"ssl": "patch_ssl", "subprocess": "patch_subprocess"}
_ANY_NAME: Final = {"ssl": "SSLContext", "subprocess": "Popen"}
_ABSENT: Final = object()
_taking_over: Final = Lock()  # made before gevent patches anything; never held for an import
_SHA256: Final = ("_sha256", "_sha2")  # CPython's own; the second name from 3.12 on


# What is true of a module and asked of it so often that it would be loaded for that.
_KNOWN: Final[dict[str, dict[str, object]]] = {
    "pickle": {"DEFAULT_PROTOCOL": 4 if sys.version_info < (3, 14) else 5},  # by pyzmq
}


def defer() -> None:
    """Leave stand-ins. What has been imported already stays as it is."""
    if any(find_spec(name) is not None for name in _SHA256):
        # hashlib then takes CPython's own functions: OpenSSL's are 3.5 MiB for a SHA-256 of a
        # token. `ssl` does not need `_hashlib`.
        sys.modules.setdefault("_hashlib", None)  # type: ignore[arg-type]  # means: not there
    for name in _ON_USE:
        _stand_in(name)
    if "msgspec" not in sys.modules and "typing_extensions" not in sys.modules:
        # It takes from there what `typing` has as well.
        sys.modules["typing_extensions"] = None  # type: ignore[assignment]
        importlib.import_module("msgspec")
        del sys.modules["typing_extensions"]


def give_back() -> None:
    """Take all stand-ins away, for code that is not ours and may expect anything of a module.

    What is loaded keeps its references, which still work; what is imported from now on is the
    modules themselves, with OpenSSL's functions in hashlib.
    """
    for name, module in list(sys.modules.items()):
        if isinstance(module, _StandIn):
            if name in _PATCHES:  # it is patched when it is loaded through its stand-in
                getattr(module, _ANY_NAME[name])
            else:
                del sys.modules[name]
    if sys.modules.get("_hashlib", _ABSENT) is None:
        del sys.modules["_hashlib"]
        if "hashlib" in sys.modules:
            importlib.reload(sys.modules["hashlib"])


@contextmanager
def mentioning(name: str, **values: object) -> Iterator[None]:
    """For the import of a library that wants `values` of the module `name` and no more.

    Where the module has been loaded already it is left alone.
    """
    stand_in = _stand_in(name)
    if stand_in is None:
        yield
        return
    stand_in.__dict__.update(values, _is_mentioned=True)
    try:
        yield
    finally:
        for each in (*values, "_is_mentioned"):
            del stand_in.__dict__[each]


def _stand_in(name: str) -> _StandIn | None:
    """The stand-in for a module, made if need be; None where the module itself is there."""
    known = sys.modules.get(name)
    if known is None:
        known = sys.modules[name] = _StandIn(name)
        known.__dict__.update(_KNOWN.get(name, {}))
        package, _, own = name.rpartition(".")
        if package:
            setattr(importlib.import_module(package), own, known)
    return known if isinstance(known, _StandIn) else None


class _StandIn(ModuleType):
    """A module that is loaded when it is asked for an attribute.

    (importlib's LazyLoader makes modules that a second `import` loads.)
    """

    _is_mentioned = False

    def __getattr__(self, attribute: str) -> Any:
        name = self.__name__
        if attribute.startswith("__") and (
            # The import system looks around; for `__path__` before it imports a submodule.
            attribute != "__path__" or name not in _PACKAGES or self._is_mentioned
        ):
            raise AttributeError(attribute)
        with _taking_over:  # two threads may ask at once
            if sys.modules.get(name) is self:
                del sys.modules[name]
        loaded = importlib.import_module(name)
        _make_cooperative(name)
        value = self.__dict__[attribute] = getattr(loaded, attribute)
        return value


def _make_cooperative(name: str) -> None:
    patch = _PATCHES.get(name)
    monkey = sys.modules.get("gevent.monkey")
    if patch is None or monkey is None or not monkey.is_module_patched("socket"):
        return
    gevents_own = sys.modules.get(f"gevent.{name}")
    if gevents_own is not None and getattr(gevents_own.__spec__, "_initializing", False):
        return  # it is what asks for the module, and has nothing to patch it with yet
    getattr(monkey, patch)()
