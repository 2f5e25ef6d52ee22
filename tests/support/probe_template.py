"""A template whose workers report what they are: `python -m tests.support.probe_template`.

With PROBE=values each worker prints one JSON object of its random values and its process, and ends.
With PROBE=imports it is a real worker that appends the name of each module that it imports to the
file IMPORTED.
"""

from __future__ import annotations

from workers import template  # isort: skip  (it patches the standard library)

import json
import os
import random
import secrets
import signal
import ssl
import sys
import tempfile
import time
import uuid
from pathlib import Path

import loro
import zmq.green

from pylon import metrics
from pylon.clock import SystemClock, SystemRandom
from pylon.ids import RowIds

random.random()  # as a library may do that is imported here
_rng = SystemRandom()
_rng.below(10)


def print_values(role: str) -> None:
    """Print what must differ between two workers, and what must not."""
    ids = RowIds(SystemClock(), SystemRandom())
    different = {
        "pid": os.getpid(), "row_id": ids.new(), "counter": ids.new()[-8:],
        "token": SystemRandom().token_hex(16), "jitter": SystemRandom().uniform(0, 1),
        "jitter_of_template": _rng.uniform(0, 1),
        "random": random.random(), "bits": random.getrandbits(64), "secret": secrets.token_hex(16),
        "uuid": str(uuid.uuid4()), "ssl": ssl.RAND_bytes(8).hex(),
        "file": next(tempfile._get_candidate_names()),  # type: ignore[attr-defined]
        "peer": str(loro.LoroDoc().peer_id),
    }
    context = zmq.green.Context.instance()
    fresh = sum(
        sample.value for family in metrics.snapshot() for sample in family.samples
        if family.kind == "counter"
    )
    metrics.MESSAGES_SENT.inc()
    same = {
        "counted": fresh, "context": context is not None, "role": role,
        "mark": os.environ.get("MARK"), "template": os.environ.get("TEMPLATE_ONLY"),
        "cwd": str(Path.cwd()), "umask": os.umask(0o077), "argv": sys.argv,
        "group": os.getpgrp() == os.getpid(), "parent": os.getppid(),
        "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "fds": sorted(int(path.name) for path in Path("/proc/self/fd").iterdir()),
    }
    print(json.dumps({"different": different, "same": same}), flush=True)
    time.sleep(60)


def watch_imports(role: str) -> None:
    """Be a worker that notes its imports."""
    path = os.environ["IMPORTED"]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event == "import":
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            os.write(fd, f"{role} {arguments[0]}\n".encode())
            os.close(fd)

    sys.addaudithook(note)
    template.run_role(role)


template.main(print_values if os.environ.get("PROBE") == "values" else watch_imports)
