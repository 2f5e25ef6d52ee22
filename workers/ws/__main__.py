"""`python -m workers.ws`: started by the supervisor only."""

# ruff: noqa: E402  (the patch must come before every other import)
from pylon.runtime.gevent_patch import patch

patch()

from workers.boot import boot
from workers.ws.server import serve

serve(boot())
