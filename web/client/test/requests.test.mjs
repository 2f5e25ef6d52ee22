// Ids, and what a request does after a failure.
import assert from "node:assert/strict";
import test from "node:test";
import { PylonError, pylon } from "../../../pylon/clientjs/pylon.js";

const answers = (...list) => {
  const asked = [];
  return { asked, fetch: async (url, init) => { asked.push([url, init]); const next = list.shift(); if (next instanceof Error) throw next; return next; } };
};
const json = (body, init) => new Response(JSON.stringify(body), init);
const instant = { setTimeout: (work, delay) => setTimeout(work, delay >= 30_000 ? delay : 0), random: () => 0.5 };

test("ids sort by the time of their making, also within a millisecond", () => {
  const app = pylon({ store: "memory", environment: { now: () => 1_700_000_000_000 } });
  const ids = Array.from({ length: 1000 }, () => app.newId());
  assert.deepEqual([...ids].sort(), ids);
  assert.match(ids[0], /^[0-9a-f]{40}$/);
});

test("a failed request is sent again with the same key, and a refusal is not", async () => {
  const { asked, fetch } = answers(new TypeError("no network"), json({ error: { code: "UNAVAILABLE", message: "later" } }, { status: 503 }), json({ ok: 1 }));
  const app = pylon({ url: "http://x", store: "memory", environment: { ...instant, fetch } });
  assert.deepEqual(await app.call("POST", "/api/y", {}), { ok: 1 });
  const keys = asked.map(([, init]) => init.headers["Idempotency-Key"]);
  assert.equal(new Set(keys).size, 1);
  assert.equal(keys.length, 3);
  const refused = answers(json({ error: { code: "POLICY_DENIED", message: "no", hint: "ask" } }, { status: 403, headers: { "x-request-id": "r1" } }));
  const other = pylon({ url: "http://x", store: "memory", environment: { ...instant, fetch: refused.fetch } });
  await assert.rejects(other.call("POST", "/api/y", {}), error => error instanceof PylonError
    && error.code === "POLICY_DENIED" && error.status === 403 && error.hint === "ask" && error.requestId === "r1" && !error.retryable);
  assert.equal(refused.asked.length, 1);
});

test("an aborted call says so, and is not sent again", async () => {
  const stop = new AbortController();
  const fetch = (_, { signal }) => new Promise((_, reject) => signal.addEventListener("abort", () => reject(signal.reason)));
  const app = pylon({ url: "http://x", store: "memory", environment: { ...instant, fetch } });
  const call = app.call("GET", "/api/y", undefined, { signal: stop.signal });
  setTimeout(() => stop.abort(), 5);
  await assert.rejects(call, error => error.code === "ABORTED");
});

test("Retry-After is kept", async () => {
  const waits = [];
  const { fetch } = answers(json({ error: { code: "RATE_LIMITED", message: "slow" } }, { status: 429, headers: { "retry-after": "7" } }), json({}));
  const app = pylon({ url: "http://x", store: "memory", environment: { ...instant, fetch, setTimeout: (work, delay) => { waits.push(delay); return setTimeout(work, delay >= 30_000 ? delay : 0); } } });
  await app.call("GET", "/api/y");
  assert.ok(waits.includes(7000));
});

test("what one user has begun is not sent again as another", async () => {
  const asked = [];
  const app = pylon({
    url: "http://x", store: "memory",
    environment: { ...instant, fetch: async (_, init) => { asked.push(init.headers.Authorization); await app.auth.use({ token: "b", user_id: "bob" }); throw new TypeError("no network"); } },
  });
  await app.auth.use({ token: "a", user_id: "ann" });
  await assert.rejects(app.call("POST", "/api/y", {}), error => error.code === "NETWORK");
  assert.deepEqual(asked, ["Bearer a"]);
});
