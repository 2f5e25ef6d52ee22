"""The shipped nginx configuration, moved to ports that a test may use."""

from __future__ import annotations

import re
from pathlib import Path

SHIPPED = (
    Path(__file__).parent.parent.parent / "pylon" / "install" / "files" / "pylon.conf"
)


def moved(
    listen_port: int, first_upstream_port: int = 4321, *, logs: Path | None = None
) -> str:
    """The configuration as shipped, but for its ports, because port 80 belongs to root, and for its
    log files, which are in the folder `logs`, or nowhere."""
    conf = SHIPPED.read_text()
    if logs is None:
        conf = re.sub(r"/var/log/nginx/\w+\.log", "/dev/null", conf)
    else:
        conf = conf.replace("/var/log/nginx", str(logs))
    for offset, default in enumerate((4321, 4322, 4323, 4324)):
        conf = conf.replace(f"127.0.0.1:{default}", f"127.0.0.1:{first_upstream_port + offset}")
    conf, replaced = re.subn(r"listen\s+80\b[^;]*;", f"listen 127.0.0.1:{listen_port};", conf)
    assert replaced >= 1
    return re.sub(r"listen\s+\[::\]:80[^;]*;", "", conf)
