"""What the processes of a server do not load, and that it is there for whoever asks."""

from __future__ import annotations

import subprocess
import sys

import pytest

pytestmark = pytest.mark.usefixtures("processes")

_LOADED = (
    "loaded = {n for n, m in sys.modules.items() if m and type(m).__name__ != '_StandIn'}\n"
)
_HEAVY = (
    "{'ssl', '_ssl', '_hashlib', 'asyncio', 'importlib.metadata', 'urllib.request', 'loro', "
    "'http.client', 'email.message', 'gevent.pywsgi', 'subprocess'}"
)


def run(code: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize("code", [
    "import workers.http.__main__\n",
    "import workers.http.__main__\nfrom pylon.runtime import gevent_patch; gevent_patch.patch()\n"
    "import workers.http.server, workers.http.loop, workers.http.process\n",
    "from pylon.runtime import gevent_patch; gevent_patch.patch()\n"
    "import workers.boot, workers.ws.server\n",
    "from pylon.runtime import gevent_patch; gevent_patch.patch()\n"
    "import workers.boot, workers.sse.server\n",
    "from pylon.runtime import gevent_patch; gevent_patch.patch()\n"
    "import workers.boot, workers.shards.server\n",
    "from pylon.imports import defer; defer()\nimport pylon.cli.start, supervisor.main\n",
], ids=["arbiter", "http", "ws", "sse", "shards", "supervisor"])
def test_no_process_loads_what_only_a_library_might_use(code: str) -> None:
    run(f"{code}{_LOADED}sys.exit(', '.join(loaded & {_HEAVY}) or None)")


def test_a_stand_in_becomes_the_module_when_it_is_asked() -> None:
    run(
        "from pylon.imports import defer; defer(); defer()\n"
        "import ssl, importlib.metadata as metadata, email.utils, hashlib\n"
        "assert type(ssl).__name__ == '_StandIn'\n"
        "context = ssl.create_default_context()\n"
        "import ssl as real\n"
        "assert type(context) is real.SSLContext and type(real).__name__ == 'module'\n"
        "assert metadata.version('falcon') and email.utils.formatdate(0, usegmt=True)\n"
        "assert hashlib.sha256(b'abc').hexdigest().startswith('ba7816bf')\n"
    )


def test_what_is_loaded_late_is_cooperative_all_the_same() -> None:
    run(
        "from pylon.runtime import gevent_patch; gevent_patch.patch()\n"
        "import ssl, subprocess\n"
        "ssl.SSLSocket, subprocess.run\n"
        "import ssl as real, gevent.ssl\n"
        "assert real.SSLSocket is ssl.SSLSocket is gevent.ssl.SSLSocket\n"
        "import subprocess as real, gevent.subprocess\n"
        "assert real.Popen is gevent.subprocess.Popen\n"
    )


def test_gevents_own_modules_can_be_imported_first() -> None:
    run(
        "from pylon.runtime import gevent_patch; gevent_patch.patch()\n"
        "import gevent.ssl, gevent.subprocess\n"
    )


def test_a_module_that_is_mentioned_says_no_more_than_it_was_given() -> None:
    run(
        "from pylon.imports import mentioning\n"
        "with mentioning('ssl', CERT_NONE='none'):\n"
        "    from ssl import CERT_NONE\n"
        "assert CERT_NONE == 'none' and '_ssl' not in sys.modules\n"
        "from ssl import CERT_NONE\n"
        "assert CERT_NONE == 0 and '_ssl' in sys.modules\n"
        "with mentioning('ssl', CERT_NONE='none'):\n"
        "    from ssl import CERT_NONE\n"
        "assert CERT_NONE == 0\n"
    )


def test_what_is_known_of_a_module_is_true() -> None:
    run(
        "import pickle\n"
        "from pylon import imports\n"
        "assert imports._KNOWN['pickle'] == {'DEFAULT_PROTOCOL': pickle.DEFAULT_PROTOCOL}\n"
    )


def test_a_part_of_a_package_that_has_a_stand_in_can_be_imported() -> None:
    run(
        "from pylon.imports import defer; defer()\n"
        "import html.parser\n"
        "assert html.parser.HTMLParser and html.escape('<') == '&lt;'\n"
        "assert type(html).__name__ == 'module'\n"
    )


def test_threads_that_ask_at_once_get_the_same_module() -> None:
    run(
        "from pylon.imports import defer; defer()\n"
        "from concurrent.futures import ThreadPoolExecutor\n"
        "from threading import Barrier\n"
        "import difflib, html, shutil, tempfile, argparse\n"
        "sys.setswitchinterval(1e-6)\n"
        "for module, name in ((difflib, 'ndiff'), (html, 'escape'), (argparse, 'Action')):\n"
        "    barrier = Barrier(8)\n"
        "    def ask(_):\n"
        "        barrier.wait()\n"
        "        return getattr(module, name)\n"
        "    with ThreadPoolExecutor(8) as pool:\n"
        "        assert len(set(pool.map(ask, range(8)))) == 1\n"
    )
