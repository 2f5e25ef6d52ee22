"""The JavaScript client in Chromium: the cost of an update of a large window, and of a start.

    python bench/client_js.py [--rows 1000] [--updates 500] [--per-second 50] [--cached 10000]
                              [--out FOLDER]

- `update_ms`: main thread from the arrival of a diff in a window of `--rows` rows until its
  listeners have been called, for `--updates` updates of random rows.
- `start_ms`: from `pylon()` to the first listener's call with the `--cached` rows of a replica in
  IndexedDB, before the network has answered. `first_ms`: the same without a cache, with the pull.

The page draws nothing: both are the client's share.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any, Final

sys.path.insert(0, str(Path(__file__).parent.parent))

from tests.support.browser import Browser
from tests.support.server import PylonServer

MANIFEST: Final = {
    "name": "bench",
    "entities": [{
        "name": "Item",
        "fields": [
            {"name": "rank", "type": "int"}, {"name": "title", "type": "string"},
            {"name": "body", "type": "string"},
        ],
        "indexes": [{"name": "by_rank", "fields": ["rank"]}],
        "crdt": False,
    }],
    "policies": [{
        "name": "items", "entity": "Item", "allowRead": "true", "allowInsert": "true",
        "allowUpdate": "true",
    }],
}
PAGE: Final = """<!doctype html><title>Bench</title><script type="module">
import { pylon } from "/client/pylon.js";
import { offline } from "/client/offline.js";
const spent = [];
class Measured extends WebSocket {
  set onmessage(handle) {
    super.onmessage = handle && (event => {
      const began = performance.now();
      handle(event);
      queueMicrotask(() => spent.push(performance.now() - began));
    });
  }
}
globalThis.update = async (rows, updates, perSecond) => {
  const app = pylon({ store: "memory", environment: { WebSocket: Measured } });
  await app.auth.guest();
  const window = app.live("Item", { order: { rank: "asc" }, limit: rows });
  let calls = 0;
  window.subscribe(() => { calls += 1; });
  const ids = (await window.ready()).map(row => row.id);
  spent.length = 0;
  const writer = pylon({ store: "memory" });
  await writer.auth.guest();
  for (let n = 0; n < updates; n++) {
    const id = ids[Math.floor(Math.random() * ids.length)];
    const moved = n % 5 ? {} : { rank: Math.floor(Math.random() * rows) };
    writer.update("Item", id, { title: "title " + n, ...moved });
    await new Promise(resolve => setTimeout(resolve, 1000 / perSecond));
  }
  await new Promise(resolve => setTimeout(resolve, 500));
  app.close();
  writer.close();
  return { spent, calls };
};
globalThis.start = async () => {
  const began = performance.now();
  const app = pylon({ name: "cached", offline: offline({ replica: ["Item"] }) });
  const window = app.live("Item");
  const elapsed = await new Promise(resolve => window.subscribe(({ rows }) => {
    if (rows.length) resolve(performance.now() - began);
  }));
  const { length } = window.rows;
  const wait = app.status.state;
  await window.ready();
  await new Promise(resolve => setTimeout(resolve, 3000));
  app.close();
  return { elapsed, length, state: wait };
};
</script>"""
_BATCH: Final = 1_000


def quantile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def measure(args: argparse.Namespace, folder: Path) -> dict[str, Any]:
    public = folder / "public"
    public.mkdir()
    (public / "index.html").write_text(PAGE)
    server = PylonServer(folder, MANIFEST, {
        "PYLON_DEV_MODE": "true", "PYLON_STATIC_DIR": str(public),
    })
    server.start()
    try:
        for first in range(0, args.cached, _BATCH):
            status, answer, _ = server.request("POST", "/api/batch", {"operations": [
                {"op": "insert", "entity": "Item",
                 "data": {"rank": n, "title": f"title {n}", "body": "text " * 40}}
                for n in range(first, min(first + _BATCH, args.cached))
            ]})
            assert status == 200, answer
        program = shutil.which("chromium") or "chromium"
        with Browser(program, folder / "profile") as browser:
            page = browser.open(f"http://127.0.0.1:{server.port}/app/")
            page.wait("the page", "typeof update === 'function'")
            page.run(f"update({args.rows}, {args.updates}, {args.per_second})"
                     ".then(found => { globalThis.updated = found }); 0")
            page.wait("the updates", "globalThis.updated", 120 + args.updates / args.per_second)
            updated = page.run("updated")
            starts = []
            for name in ("first", "again", "third"):
                page.run(f"start().then(found => {{ globalThis.{name} = found }}); 0")
                page.wait("the start", f"globalThis.{name}", 120)
                starts.append(page.run(name))
    finally:
        server.close()
    spent = updated["spent"]
    return {
        "rows": args.rows, "messages": len(spent), "listener_calls": updated["calls"],
        "update_ms": {"p50": quantile(spent, 0.5), "p99": quantile(spent, 0.99), "max": max(spent)},
        "cached": starts[1]["length"], "first_ms": starts[0]["elapsed"],
        "start_ms": min(each["elapsed"] for each in starts[1:]),
        "state_at_start": starts[1]["state"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rows", type=int, default=1_000)
    parser.add_argument("--updates", type=int, default=500)
    parser.add_argument("--per-second", type=float, default=50)
    parser.add_argument("--cached", type=int, default=10_000)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = measure(args, Path(folder))
    print(json.dumps(report, indent=2))
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "client_js.json").write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
