"""`python -m workers.shards`: started by the supervisor only."""

# ruff: noqa: E402  (the patch must come before every other import)
from pylon.runtime.gevent_patch import patch

patch()

from workers.boot import boot
from workers.shards.server import serve

serve(boot())
