"""Imports of each process: few for the CLI's quick verbs, all of the workers' for the template."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.usefixtures("processes")

ROOT = Path(__file__).parent.parent
_SERVER = ("supervisor", "workers", "gevent", "gunicorn", "falcon", "zmq", "loro")


def run(code: str) -> str:
    """Run `code`, which must exit 0 and print nothing to stderr; what it prints to stdout."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys\n{code}"], capture_output=True, text=True, timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


@pytest.mark.parametrize("arguments", [
    ["version"], ["explain", "NOT_FOUND"], ["status", "--help"], ["stop", "--help"],
], ids=lambda arguments: arguments[0])
def test_a_quick_verb_does_not_import_the_server(arguments: list[str]) -> None:
    assert run(
        "from pylon.cli.main import cli\n"
        "import contextlib, io\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    cli.main({arguments!r}, standalone_mode=False)\n"
        f"print({{name.partition('.')[0] for name in sys.modules}} & set({_SERVER!r}))"
    ) == "set()\n"


def test_the_supervisor_imports_no_gevent() -> None:
    """It has threads, which gevent's patches would turn into greenlets."""
    assert run(
        "import pylon.cli.start, pylon.cli.serve, supervisor.main\n"
        "print({'gevent', 'workers'} & set(sys.modules))"
    ) == "set()\n"


# What a template that was forked keeps of the functions that gevent replaces, beyond one that was
# executed: the supervisor's modules were imported before the patch. No greenlet switches while it
# holds one of these locks, and nothing in a worker calls the others.
_KEPT_UNPATCHED = {
    "click.globals.local",
    "gevent.ssl.create_connection",
    "prometheus_client.metrics.Lock",
    "prometheus_client.registry.Lock",
    "prometheus_client.values.Lock",
    "pylon.cli.serve.Thread",
    "ssl.create_connection",
    "ssl.socket",
    "subprocess._waitpid",
    "supervisor.events.SimpleQueue",
    "tempfile._allocate_lock",
    "zmq.backend.cython._zmq.Event",
    "zmq.sugar.context.Lock",
    "zmq.sugar.tracker.Event",
}


def _unpatched(imports: str) -> set[str]:
    """Return what modules hold of the functions that gevent has replaced, after the imports."""
    return set(run(
        f"{imports}\n"
        "from workers import template\n"
        "template.import_all()\n"
        "from gevent import monkey\n"
        "saved = {id(value) for names in monkey.saved.values() for value in names.values()\n"
        "         if callable(value)}\n"
        "for name, module in sorted(sys.modules.items()):\n"
        "    for key, value in vars(module).items():\n"
        "        if id(value) in saved:\n"
        "            print(f'{name}.{key}')\n"
        "import ssl\n"
        "context = ssl.create_default_context()\n"
        "context.minimum_version = ssl.TLSVersion.TLSv1_3\n"  # endless in a half-patched `ssl`
    ).split())


def test_a_forked_template_patches_all_that_may_wait() -> None:
    executed = _unpatched("")
    forked = _unpatched(
        "import pylon.cli.start, pylon.cli.serve, supervisor.main, pylon.storage.sqlite.backend"
    )
    assert forked - executed == _KEPT_UNPATCHED


@pytest.mark.parametrize("module", ["autobahn", "debian"])
def test_the_installers_of_test_tools_import_only_the_standard_library(module: str) -> None:
    """`make test-tools` runs on a machine that has none of Pylon's libraries yet."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", f"import tests.support.{module}"], cwd=ROOT,
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_the_template_has_no_hub_and_no_thread_after_its_imports() -> None:
    said = run(
        "from workers import template\n"
        "import importlib, os\n"
        "template.import_all()\n"
        "from gevent._hub_local import get_hub_if_exists\n"
        "print(get_hub_if_exists(), len(os.listdir('/proc/self/task')))\n"
        "links = [os.readlink(f'/proc/self/fd/{fd}') for fd in range(3, 64)\n"
        "         if os.path.exists(f'/proc/self/fd/{fd}')]\n"
        "print([link for link in links if 'anon_inode' in link or 'socket' in link])\n"
        "import zmq; print(zmq.Context._instance)\n"
        "os._exit(sys.stdout.flush() or 0)\n"
    )
    assert said.splitlines() == ["None 1", "[]", "None"]


def test_ssl_and_subprocess_are_cooperative_after_the_patch() -> None:
    assert run(
        "from pylon.runtime.gevent_patch import patch, patch_worker, restore_forking; patch()\n"
        "import ssl, subprocess, gevent.ssl, gevent.subprocess\n"
        "assert ssl.SSLSocket is gevent.ssl.SSLSocket\n"
        "assert subprocess.Popen is gevent.subprocess.Popen\n"
        "import os, queue, signal, gevent.os, gevent.queue, gevent.signal\n"
        "restore_forking()\n"
        "assert os.fork is not gevent.os.fork_and_watch\n"
        "assert queue.SimpleQueue is not gevent.queue.SimpleQueue\n"
        "patch_worker(); patch_worker()\n"
        "assert os.waitpid is gevent.os.waitpid and signal.signal is gevent.signal.signal\n"
        "assert queue.SimpleQueue is gevent.queue.SimpleQueue\n"
    ) == ""
