// The behaviour of the JavaScript client, scenario by scenario (scenarios.json): in Node and in a browser.
// A scenario gets `stage`: the client's module, the addresses, and the proxy's faults.

const S = 1_000;
const until = async (what, holds, timeout_ms = 30 * S) => {
  const end = Date.now() + timeout_ms;
  for (;;) {
    const value = await holds();
    if (value) return value;
    if (Date.now() > end) throw new Error(`not within ${timeout_ms / S} s: ${what}`);
    await new Promise(resolve => setTimeout(resolve, 20));
  }
};
const equal = (a, b, what) => {
  if (JSON.stringify(a) !== JSON.stringify(b)) throw new Error(`${what}: ${JSON.stringify(a)} is not ${JSON.stringify(b)}`);
};
const ok = (value, what) => { if (!value) throw new Error(what); };
const refusal = async promise => {
  try {
    await promise;
  } catch (error) {
    return error;
  }
  throw new Error("it was not refused");
};

/** An environment whose clock runs `factor` times as fast. */
const fast = factor => {
  const start = Date.now();
  return {
    now: () => start + (Date.now() - start) * factor,
    setTimeout: (work, delay_ms) => setTimeout(work, delay_ms / factor),
    clearTimeout: timer => clearTimeout(timer),
  };
};

class Stage {
  constructor({ pylon, offline, url, controls, random = Math.random }) {
    Object.assign(this, { pylon, offline, url, controls, random });
    this.apps = [];
    this.group = `g${Math.floor(Math.random() * 1e12)}`;  // the rows of one scenario
  }

  async client(options = {}) {
    const app = this.pylon({ url: this.url, store: "memory", retries: 5, environment: fast(10), ...options });
    app.refusals = [];
    app.on("error", error => app.refusals.push(error));
    this.apps.push(app);
    if (options.guest !== false) await app.auth.guest();
    return app;
  }

  items(app, more = {}) { return app.live("Item", { where: { group: this.group }, order: { rank: "asc", id: "asc" }, limit: 100, ...more }); }
  row(rank, more = {}) { return { group: this.group, rank, text: `t${rank}`, ...more }; }

  async fault(faults, which = [0]) {
    for (const number of which) await fetch(`http://127.0.0.1:${this.controls[number]}/faults`, { method: "POST", body: JSON.stringify(faults) });
  }
  async cut() { for (const port of this.controls) await fetch(`http://127.0.0.1:${port}/cut`, { method: "POST" }); }
  async heal() { for (const port of this.controls) await fetch(`http://127.0.0.1:${port}/heal`, { method: "POST" }); }

  async close() {
    await this.heal();
    for (const app of this.apps) app.close();
  }
}

const texts = window => window.rows.map(row => row.text);
const watch = window => {
  const seen = [];
  window.subscribe(snapshot => { if (seen.at(-1) !== snapshot.state) seen.push(snapshot.state); });
  return seen;
};

export const scenarios = {
  async window_follows_its_order_and_limit(stage) {
    const [a, b] = [await stage.client(), await stage.client()];
    const window = stage.items(b, { limit: 3 });
    watch(window);
    await window.ready();
    const ids = [];
    for (const rank of [5, 3, 1, 4, 2]) ids.push(await a.insert("Item", stage.row(rank)));
    await until("the first three", () => texts(window).join() === "t1,t2,t3");
    ok(window.snapshot.more, "there are more");
    await a.update("Item", ids[2], { rank: 9, text: "moved" });
    await until("the next moves in", () => texts(window).join() === "t2,t3,t4");
    await window.more(10);
    await until("wider", () => texts(window).join() === "t2,t3,t4,t5,moved");
    ok(!window.snapshot.more, "there are no more");
    await a.delete("Item", ids[1]);
    await until("deleted", () => texts(window).join() === "t2,t4,t5,moved");
    const asked = await b.query("Item", { where: { group: stage.group }, order: { rank: "asc", id: "asc" } });
    equal(window.rows, asked, "the window and the query");
    const pages = [];
    for await (const page of b.pages("Item", { where: { group: stage.group }, order: { rank: "asc" }, limit: 2 })) pages.push(...page);
    equal(pages, asked, "the pages and the query");
  },

  async equal_windows_share_a_subscription(stage) {
    const a = await stage.client();
    const [one, two] = [stage.items(a), stage.items(a)];
    watch(one);
    watch(two);
    await one.ready();
    await a.insert("Item", stage.row(1));
    await until("both", () => texts(one).length === 1 && texts(two).length === 1);
    ok(one.rows === two.rows, "they show the same list");
    one.close();
    await a.insert("Item", stage.row(2));
    await until("the other one follows", () => texts(two).length === 2);
  },

  async window_comes_back_after_a_cut(stage) {
    const [a, b] = [await stage.client(), await stage.client()];
    const window = stage.items(b);
    const seen = watch(window);
    await window.ready();
    await a.insert("Item", stage.row(1));
    await until("the row", () => texts(window).length === 1);
    await stage.fault({ refuse: true });
    await stage.cut();
    await until("not live", () => window.state !== "live");
    equal(texts(window), ["t1"], "the rows of before stay");
    await stage.heal();
    await a.insert("Item", stage.row(2));
    await until("live again", () => window.state === "live" && texts(window).join() === "t1,t2");
    ok(seen.includes("stale") || seen.includes("offline"), `states: ${seen}`);
  },

  async blocked_websocket_falls_back_to_the_event_stream(stage) {
    await stage.fault({ block_websocket: true });
    const a = await stage.client({ environment: fast(100) });
    const window = stage.items(a);
    watch(window);
    await until("the event stream", () => a.status.transport === "sse");
    await window.ready();
    const other = await stage.client();
    await other.insert("Item", stage.row(1));
    await until("the row", () => texts(window).join() === "t1");
    await stage.heal();
    await until("the socket again", () => a.status.transport === "ws");
    await other.insert("Item", stage.row(2));
    await until("the next row", () => texts(window).join() === "t1,t2");
  },

  async blocked_streams_fall_back_to_polling(stage) {
    await stage.fault({ block_websocket: true });
    await stage.fault({ refuse: true }, [1]);
    const [a, b] = [await stage.client(), await stage.client()];
    const window = stage.items(a);
    watch(window);
    await until("polling", () => a.status.transport === "poll");
    await b.insert("Item", stage.row(1));
    const own = a.insert("Item", stage.row(2));
    equal(texts(window).includes("t2"), true, "the own row is shown at once");
    await own;
    await until("the rows", () => texts(window).join() === "t1,t2");
  },

  async stalled_connection_is_noticed_by_pings(stage) {
    const a = await stage.client({ environment: fast(30) });
    const window = stage.items(a);
    const seen = watch(window);
    await window.ready();
    await stage.fault({ stall: true });
    await until("noticed", () => window.state !== "live");
    await stage.heal();
    await until("live again", () => window.state === "live");
    ok(seen.length >= 3, `states: ${seen}`);
  },

  async lost_answers_do_not_double_a_write(stage) {
    const a = await stage.client({ offline: stage.offline() });
    await a.insert("Item", stage.row(0));
    await stage.fault({ lose_answers: true });
    const writes = [1, 2, 3].map(rank => a.insert("Item", stage.row(rank)));
    await new Promise(resolve => setTimeout(resolve, 600));
    await stage.heal();
    await Promise.all(writes);
    const rows = await a.query("Item", { where: { group: stage.group }, order: { rank: "asc" } });
    equal(rows.map(row => row.text), ["t0", "t1", "t2", "t3"], "each once");
    equal(a.refusals.length, 0, "nothing was refused");
  },

  async refused_write_is_taken_back_and_reported(stage) {
    const a = await stage.client();
    const window = stage.items(a);
    watch(window);
    await window.ready();
    const write = a.insert("Item", stage.row(1, { text: "forbidden" }));
    equal(texts(window), ["forbidden"], "shown at once");
    const error = await refusal(write);
    ok(error instanceof stage.PylonError && error.code === "POLICY_DENIED" && !error.retryable, `${error}`);
    equal(texts(window), [], "taken back");
    equal(a.refusals.map(each => each.code), ["POLICY_DENIED"], "the listener");
  },

  async transaction_happens_as_a_whole(stage) {
    const a = await stage.client();
    const id = await a.insert("Item", stage.row(1));
    const error = await refusal(a.tx(t => {
      t.update("Item", id, { text: "changed" });
      t.insert("Item", stage.row(2, { text: "forbidden" }));
    }));
    equal(error.code, "POLICY_DENIED", "the code of the step");
    equal((await a.get("Item", id)).text, "t1", "nothing has changed");
    await a.tx(t => { t.update("Item", id, { text: "changed" }); t.insert("Item", stage.row(2)); });
    equal((await a.query("Item", { where: { group: stage.group }, order: { rank: "asc" } })).map(row => row.text), ["changed", "t2"], "both");
  },

  async write_of_an_old_version_is_refused(stage) {
    const a = await stage.client();
    const id = await a.insert("Item", stage.row(1));
    await a.update("Item", id, { text: "newer" });
    const error = await refusal(a.update("Item", id, { text: "old" }, { ifSeq: 1 }));
    equal(error.code, "PRECONDITION_FAILED", "the code");
    equal((await a.get("Item", id)).text, "newer", "the row");
    equal(await a.get("Item", "0".repeat(40)), null, "a row that is not there");
  },

  async offline_writes_wait_and_arrive_in_order(stage) {
    const a = await stage.client({ offline: stage.offline() });
    const window = stage.items(a);
    watch(window);
    await window.ready();
    await stage.fault({ refuse: true });
    await stage.cut();
    const writes = [1, 2, 3, 4].map(rank => a.insert("Item", stage.row(rank)));
    const id = a.newId();
    writes.push(a.insert("Item", stage.row(5, { id })), a.update("Item", id, { text: "five" }), a.update("Item", id, { text: "FIVE" }));
    await until("shown", () => texts(window).join() === "t1,t2,t3,t4,FIVE");
    equal(a.outbox.pending.length, 7, "they wait");
    await stage.heal();
    await Promise.all(writes);
    equal(a.outbox.pending.length, 0, "none waits");
    await until("live", () => window.state === "live");
    equal(texts(window), ["t1", "t2", "t3", "t4", "FIVE"], "the rows");
  },

  async refused_write_holds_back_only_its_row(stage) {
    const a = await stage.client({ offline: stage.offline() });
    const id = a.newId();
    const refused = a.insert("Item", stage.row(1, { id, text: "forbidden" })).catch(error => error.code);
    const later = a.update("Item", id, { text: "later" }).catch(error => error.code);
    await a.insert("Item", stage.row(2));
    equal(await refused, "POLICY_DENIED", "the refusal");
    equal([a.outbox.refused.length, a.outbox.pending.length], [1, 1], "what waits");
    await a.outbox.drop(a.outbox.refused[0].id);
    equal(await later, "NOT_FOUND", "the later one was sent");
  },

  async replica_answers_windows_and_survives_cuts(stage) {
    const a = await stage.client({ offline: stage.offline({ replica: ["Item"] }) });
    const b = await stage.client();
    const window = stage.items(a);
    watch(window);
    await window.ready();
    await b.insert("Item", stage.row(1));
    await until("the row of another", () => texts(window).join() === "t1");
    await stage.fault({ refuse: true });
    await stage.cut();
    await until("not live", () => window.state !== "live");
    const other = a.live("Item", { where: { group: stage.group, rank: { $gte: 1 } }, order: { rank: "desc" }, limit: 5 });
    watch(other);
    const own = a.insert("Item", stage.row(2));
    await until("read without a server", () => texts(other).join() === "t2,t1");
    await stage.heal();
    await own;
    await b.insert("Item", stage.row(3));
    await until("caught up", () => window.state === "live" && texts(window).join() === "t1,t2,t3");
  },

  async ended_session_keeps_the_queue(stage) {
    const a = await stage.client({ offline: stage.offline() });
    const { userId } = a.auth;
    const { token } = a.auth.session;
    await stage.fault({ refuse: true });
    await stage.cut();
    const write = a.insert("Item", stage.row(1)).catch(error => error.code);
    await fetch(`${stage.direct}/api/auth/session`, { method: "DELETE", headers: { Authorization: `Bearer ${token}` } });
    await stage.heal();
    await until("signed out", () => a.auth.userId !== userId);
    equal(await write, "CLOSED", "the promise of the write ends");
    const b = await stage.client();
    equal(await b.query("Item", { where: { group: stage.group } }), [], "nobody has written");
  },

  async room_is_joined_again_after_a_cut(stage) {
    const [a, b] = [await stage.client(), await stage.client()];
    const [one, two] = [a.room(stage.group, { data: { n: 1 } }), b.room(stage.group, { data: { n: 2 } })];
    await until("both", () => one.members.length === 2 && two.members.length === 2);
    await stage.cut();
    await until("both again", () => [one, two].every(each => each.snapshot.state === "joined" && each.members.length === 2));
    let heard = null;
    two.on("wave", (data, from) => { heard = [data, from]; });
    await until("heard", async () => { await one.broadcast("wave", { hand: "left" }).catch(() => {}); return heard; });
    equal(heard, [{ hand: "left" }, a.auth.userId], "the message");
    await two.leave();
    await until("alone", () => one.members.length === 1);
  },

  async many_clients_converge_with_the_model(stage) {
    const clients = [];
    for (let n = 0; n < stage.count; n++) {
      const replica = n % 3 === 0 ? { replica: ["Item"] } : {};
      clients.push(await stage.client(n % 2 || n % 3 === 0 ? { offline: stage.offline(replica) } : {}));
    }
    const windows = clients.map(app => { const window = stage.items(app, { limit: 1000 }); watch(window); return window; });
    await Promise.all(windows.map(window => window.ready()));
    const acknowledged = new Map(); // id -> rank of an insert that the server has
    const refused = new Set();
    const unknown = new Set(); // without the queue: the network failed, and nobody can know
    const writes = [];
    const pick = list => list[Math.floor(stage.random() * list.length)];
    const faults = [{ refuse: true }, { stall: true }, { lose_answers: true }, { block_websocket: true }, { delay_s: 0.05 }, { cut_after_bytes: 3000 }];
    const end = Date.now() + stage.seconds * S;
    let rank = 0;
    let inserts = 0;
    let reports = 0;
    while (Date.now() < end) {
      const app = pick(clients);
      const what = stage.random();
      if (what < 0.06) await stage.fault(pick(faults));
      else if (what < 0.10) await stage.cut();
      else if (what < 0.20) await stage.heal();
      else if ((what < 0.60 && inserts < 600) || acknowledged.size === 0) { // a window has 1,000 rows
        const id = app.newId();
        const isBad = stage.random() < 0.1;
        inserts += 1;
        writes.push(app.insert("Item", stage.row(++rank, { id, ...(isBad ? { text: "forbidden" } : {}) })).then(
          () => { ok(!isBad, "a forbidden row was acknowledged"); ok(!acknowledged.has(id), "twice"); acknowledged.set(id, true); },
          error => { if (error.retryable || error.code === "CLOSED") unknown.add(id); else refused.add(id); reports += 1; },
        ));
      } else {
        const id = pick([...acknowledged.keys()]);
        writes.push(app.update("Item", id, { text: `u${++rank}` }).catch(() => { reports += 1; }));
      }
      await new Promise(resolve => setTimeout(resolve, 5 + stage.random() * 20));
    }
    await stage.heal();
    await Promise.all(writes);
    const app = clients[0];
    const all = async () => {
      const rows = [];
      for await (const page of app.pages("Item", { where: { group: stage.group }, order: { rank: "asc" }, limit: 1000 })) rows.push(...page);
      return rows;
    };
    const rows = await all();
    const ids = rows.map(row => row.id);
    equal(new Set(ids).size, ids.length, "no row twice");
    for (const id of acknowledged.keys()) ok(ids.includes(id), `the acknowledged row ${id} is lost`);
    for (const id of refused) ok(!ids.includes(id), `the refused row ${id} is there`);
    for (const id of ids) ok(acknowledged.has(id) || unknown.has(id), `the row ${id} was never acknowledged`);
    equal(reports, clients.reduce((sum, each) => sum + each.refusals.length, 0), "each refusal was reported once");
    for (const [n, window] of windows.entries()) {
      await until(`client ${n} converges`, async () => window.state === "live" && JSON.stringify(window.rows) === JSON.stringify(rows)).catch(error => {
        const other = rows.filter((row, at) => JSON.stringify(row) !== JSON.stringify(window.rows[at]));
        throw new Error(`${error.message}: ${window.state}, ${window.rows.length} of ${rows.length} rows, ${other.length} differ: ${JSON.stringify(other[0])}`);
      });
    }
    return { clients: clients.length, writes: writes.length, acknowledged: acknowledged.size, refused: refused.size, unknown: unknown.size };
  },

  async queue_survives_the_page(stage) {
    const session = { session: null };
    const store = { load: () => session.session, save: value => { session.session = value; } };
    const name = stage.group;
    const a = await stage.client({ offline: stage.offline({ replica: ["Item"] }), store, name });
    const window = stage.items(a);
    watch(window);
    await window.ready();
    await a.insert("Item", stage.row(0));
    await until("the row", () => texts(window).join() === "t0");
    await new Promise(resolve => setTimeout(resolve, 300));
    await stage.fault({ refuse: true });
    await stage.cut();
    for (const rank of [1, 2, 3]) a.insert("Item", stage.row(rank)).catch(() => {});
    await new Promise(resolve => setTimeout(resolve, 300));
    a.close(); // the page is gone
    const b = await stage.client({ offline: stage.offline({ replica: ["Item"] }), store, name, guest: false });
    const again = stage.items(b);
    watch(again);
    await until("read without a server", () => texts(again).join() === "t0,t1,t2,t3");
    equal(b.outbox.pending.length, 3, "they wait");
    await stage.heal();
    await until("sent", () => b.outbox.pending.length === 0);
    equal((await b.query("Item", { where: { group: stage.group }, order: { rank: "asc" } })).map(row => row.text), ["t0", "t1", "t2", "t3"], "each once");
  },

  async users_are_kept_apart(stage) {
    const name = stage.group;
    const a = await stage.client({ offline: stage.offline({ replica: ["Item"] }), name });
    const first = a.auth.session;
    await stage.fault({ refuse: true });
    await stage.cut();
    a.insert("Item", stage.row(1)).catch(() => {});
    await new Promise(resolve => setTimeout(resolve, 300));
    const other = await (await fetch(`${stage.direct}/api/auth/guest`, { method: "POST" })).json();
    await a.auth.use({ token: other.token, user_id: other.user_id });
    await until("another queue", () => a.outbox.pending.length === 0);
    await stage.heal();
    await a.insert("Item", stage.row(2));
    const rows = await a.query("Item", { where: { group: stage.group } });
    ok(rows.every(row => row.owner === other.user_id), "nothing of the first was written as the second");
    await a.auth.use(first);
    await until("the first one's write", async () => (await a.query("Item", { where: { group: stage.group, rank: 1 } }))[0]?.owner === first.user_id);
  },
};

const BROWSER_ONLY = new Set(["queue_survives_the_page", "users_are_kept_apart"]);

/** Run scenarios one after the other; the answer has an entry for each. */
export async function run(options) {
  const results = {};
  for (const name of options.names ?? Object.keys(scenarios)) {
    if (BROWSER_ONLY.has(name) && !globalThis.indexedDB) continue;
    const stage = new Stage(options);
    Object.assign(stage, { count: 6, seconds: 5, ...options });
    const began = Date.now();
    try {
      const detail = await scenarios[name](stage);
      results[name] = { ok: true, ms: Date.now() - began, detail };
    } catch (error) {
      results[name] = { ok: false, ms: Date.now() - began, error: `${error?.stack ?? error}`.slice(0, 2000) };
    } finally {
      await stage.close();
    }
  }
  return results;
}

if (globalThis.process?.argv[1]?.endsWith("behaviour.mjs")) {
  const options = JSON.parse(process.argv[2]);
  const [{ pylon, PylonError }, { offline }] = [await import(`${options.files}/pylon.js`), await import(`${options.files}/offline.js`)];
  const results = await run({ ...options, pylon, PylonError, offline });
  process.stdout.write(JSON.stringify(results));
  process.exit(0);
}
