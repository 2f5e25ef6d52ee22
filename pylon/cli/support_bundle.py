"""`pylonctl support-bundle`: one file with what a helper needs to know, without secrets.

The file is a tar.gz of mode 0600: settings with secrets masked, status, metrics, the doctor's
findings, versions, the manifest, the schema of the database and the last lines of the log. Every
text passes `pylon.doctor.redaction`. Nothing is sent anywhere. Rows of the app are not in it.

Bounds: `_LOG_LINES` lines and `_TEXT_BYTES` bytes of each text.
"""

from __future__ import annotations

import io
import os
import platform
import tarfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import click
import orjson

import pylon
from pylon.app_manifest import manifest_json
from pylon.cli.config import mask_secret
from pylon.cli.doctor import find_all
from pylon.cli.logs import UNIT, read_log_lines
from pylon.cli.output import json_flag, result
from pylon.cli.running import require_running
from pylon.cli.schema import describe_table
from pylon.cli.settings import dev_flag, read_settings
from pylon.clock import NS_PER_S, SystemClock
from pylon.config import Config, Loaded
from pylon.data_dir import open_private
from pylon.doctor.redaction import Redaction
from pylon.errors import PylonError
from pylon.settings import SETTINGS
from pylon.storage.factory import open_store

_LOG_LINES: Final = 5_000
_TEXT_BYTES: Final = 16 * 1_048_576
_ANSWER_S: Final = 10.0


@click.command("support-bundle")
@click.argument("file", type=click.Path(path_type=Path), required=False)
@click.option("--unit", default=UNIT, show_default=True, help="The systemd unit, for its journal.")
@dev_flag
@json_flag
def support_bundle(file: Path | None, unit: str, dev: bool) -> None:
    """Write settings, status, metrics, log and findings into a tar.gz, without secrets."""
    loaded = read_settings(dev=dev)
    now_s = SystemClock().wall_ns() / NS_PER_S
    stamp = time.strftime("%Y%m%d-%H%M%S", time.gmtime(now_s))
    file = file or Path(f"pylon-support-{stamp}.tar.gz")
    redaction = Redaction(loaded)
    names = []
    fd = open_private(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    with os.fdopen(fd, "wb") as out, tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, read in _parts(loaded, unit):
            try:
                text = read()
            except (PylonError, OSError) as ex:  # a broken server must not lack a bundle
                text = f"not available: {getattr(ex, 'message', ex)}\n"
            data = redaction.clean(text).encode()[-_TEXT_BYTES:]
            entry = tarfile.TarInfo(f"pylon-support-{stamp}/{name}")
            entry.size, entry.mtime, entry.mode = len(data), int(now_s), 0o600
            tar.addfile(entry, io.BytesIO(data))
            names.append(name)
    size_bytes = file.stat().st_size
    result(
        {"file": str(file), "size_bytes": size_bytes, "parts": names},
        f"{file}: {size_bytes} bytes, readable by you only. Secrets are removed as far as they "
        "can be recognised: look through it before you send it (tar -xzf)",
    )


def _parts(loaded: Loaded, unit: str) -> Iterator[tuple[str, Callable[[], str]]]:
    config = loaded.config
    yield "about.json", _about
    yield "settings.txt", lambda: _settings(loaded)
    yield "doctor.json", lambda: _json([each.to_json() for each in find_all(config)])
    yield "status.json", lambda: _json(require_running(config).control(_ANSWER_S).ask("status"))
    yield "metrics.txt", lambda: str(
        require_running(config).control(_ANSWER_S).ask("metrics", format="text")["body"])
    yield "manifest.json", lambda: _manifest(config)
    yield "schema.json", lambda: _schema(loaded)
    yield "log.txt", lambda: "\n".join(
        deque(read_log_lines(config, unit=unit), maxlen=_LOG_LINES)) + "\n"


def _manifest(config: Config) -> str:
    with manifest_json(config) as file:
        return file.read_text(errors="replace")


def _about() -> str:
    with Path("/proc/meminfo").open() as file:
        memory = file.readline().split()[1]
    return _json({
        "version": pylon.__version__, "python": platform.python_version(),
        "system": platform.platform(), "cores": os.cpu_count(), "memory_kib": int(memory),
        "at_s": int(SystemClock().wall_ns() / NS_PER_S),
    })


def _settings(loaded: Loaded) -> str:
    lines = [
        f"{s.env}={mask_secret(s, loaded.raw[s.env]) or ''}  # {loaded.origin[s.env]}"
        for s in SETTINGS
    ]
    providers = [f"# provider {each!r}" for each in loaded.config.sign_in_providers]
    return "\n".join([*lines, *providers, *(f"# warning: {w}" for w in loaded.warnings)]) + "\n"


def _schema(loaded: Loaded) -> str:
    store = open_store(loaded.config)
    if not store.exists():
        return "there is no database\n"
    return _json({"tables": [describe_table(table) for table in store.schema.inspect()]})


def _json(value: Any) -> str:
    return orjson.dumps(value, option=orjson.OPT_INDENT_2, default=str).decode() + "\n"
