/**
 * The outbox: writes on their way to the server, in order, each carried out once.
 *
 * A write has an `op_id`, so that the server knows a repetition. One request is in flight; it has at
 * most one operation of each row, so that a refused one cannot be passed by a later one of its row.
 * With a storage (the offline extension) writes outlive the page, wait for a connection, and a refused
 * one waits for the app's decision; without one a write that cannot be sent is refused.
 */
import type { Auth } from "./auth.js";
import { type Environment, Listeners, randomHex, type Timer } from "./environment.js";
import { errorOf, PylonError } from "./errors.js";
import type { Operation } from "./overlay.js";
import type { Requests } from "./requests.js";

export interface Entry {
  /** The op_id. */
  readonly id: string;
  /** push: one operation; tx: all or none; match: one, if the row still has the seq `ifSeq`. */
  readonly mode: "push" | "tx" | "match";
  readonly operations: Operation[];
  readonly ifSeq?: number;
  readonly isOptimistic: boolean;
  /** Milliseconds since 1970. */
  readonly madeAt: number;
  /** How often it was sent. */
  attempts: number;
  /** Why the server refused it; the entry waits for `drop` or `retry`. */
  refusal: { code: string; message: string; hint?: string | undefined } | null;
}

/** Keeps the entries of one user. The order of `load` is that of their making. */
export interface OutboxStorage {
  load(): Promise<Entry[]>;
  put(entry: Entry): Promise<void>;
  remove(id: string): Promise<void>;
}

export interface WriteOptions {
  /** False: the rows change only when the server says so. */
  optimistic?: boolean;
  /** The seq that the row must still have; otherwise the write is refused with PRECONDITION_FAILED. */
  ifSeq?: number;
}

interface Waiting { resolve(): void; reject(error: PylonError): void }

const PUSH_OPERATIONS = 100;
const ENTRIES = 10_000;
const BYTES = 50_000_000;
const LIFT_MS = 10_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;

export class Outbox {
  /** The set of operations has changed: rows have to be shown anew. */
  readonly onChange = new Listeners<[ReadonlySet<string>]>();
  readonly onRefused = new Listeners<[PylonError, Entry]>();
  #entries: Entry[] = [];
  #lifting: { entry: Entry; timer: Timer }[] = [];
  readonly #waiting = new Map<string, Waiting>();
  readonly #saved = new Map<string, Promise<void>>();
  #bytes = 0;
  #isSending = false;
  #failures = 0;
  #timer: Timer = null;
  #storage: OutboxStorage | null = null;
  #isVerified = false;
  #isClosed = false;
  readonly #clientId: string;

  constructor(private readonly env: Environment, private readonly requests: Requests, private readonly auth: Auth) {
    this.#clientId = randomHex(env, 16);
  }

  /** The writes that wait for the server, the oldest first. */
  get pending(): readonly Entry[] { return this.#entries.filter(entry => !entry.refusal); }
  /** The writes that the server refused. */
  get refused(): readonly Entry[] { return this.#entries.filter(entry => entry.refusal); }

  /** Forget a refused write. */
  async drop(id: string): Promise<void> {
    const entry = this.#entries.find(each => each.id === id && each.refusal);
    if (entry) await this.#remove(entry);
    this.wake();
  }

  /** Send a refused write again. */
  async retry(id: string): Promise<void> {
    const entry = this.#entries.find(each => each.id === id && each.refusal);
    if (!entry) return;
    entry.refusal = null;
    await this.#storage?.put(entry);
    this.#changed(entry);
    this.wake();
  }

  /** @internal The operations that lie over rows of `entity`. */
  over(entity: string): Operation[] {
    return [...this.#lifting.map(each => each.entry), ...this.#entries]
      .filter(entry => entry.isOptimistic && !entry.refusal)
      .flatMap(entry => entry.operations).filter(each => each.entity === entity);
  }

  /** @internal Resolves when the server has acknowledged the write. */
  async write(mode: Entry["mode"], operations: Operation[], options: WriteOptions): Promise<void> {
    const entry: Entry = {
      id: randomHex(this.env, 16), mode, operations, isOptimistic: options.optimistic ?? true,
      madeAt: this.env.now(), attempts: 0, refusal: null,
      ...(options.ifSeq === undefined ? {} : { ifSeq: options.ifSeq }),
    };
    const size = JSON.stringify(operations).length;
    if (this.#isClosed) throw new PylonError("CLOSED", "The client is closed", { retryable: false });
    if (this.#entries.length >= ENTRIES || this.#bytes + size > BYTES) {
      throw new PylonError("QUEUE_FULL", `The outbox has ${this.#entries.length} writes; it is full`, { retryable: false });
    }
    const done = new Promise<void>((resolve, reject) => this.#waiting.set(entry.id, { resolve, reject }));
    this.#bytes += size;
    this.#entries.push(entry);
    this.#changed(entry);
    // A write that cannot be stored is refused: the disk is full.
    if (this.#storage) this.#saved.set(entry.id, this.#storage.put(entry).catch(error => this.#refuse(entry, error, false)));
    this.wake();
    return done;
  }

  /** @internal Take the entries of another user. */
  async use(storage: OutboxStorage | null): Promise<void> {
    const left = this.#entries;
    this.#entries = [];
    this.#storage = storage;
    this.#isVerified = false;
    this.#failures = 0;
    for (const entry of left) {
      this.#waiting.get(entry.id)?.reject(new PylonError("CLOSED", "Another user has signed in", { retryable: false }));
      this.#waiting.delete(entry.id);
      this.#changed(entry);
    }
    const stored = await storage?.load() ?? [];
    if (this.#storage !== storage) return;
    this.#entries.unshift(...stored.filter(entry => !this.#entries.some(each => each.id === entry.id)));
    this.#bytes = JSON.stringify(this.#entries).length;
    for (const entry of stored) this.#changed(entry);
    this.wake();
  }

  /** @internal The server may be there again. */
  wake(isNew = false): void {
    if (isNew) this.#isVerified = false;
    this.env.clearTimeout(this.#timer);
    if (!this.#isSending) void this.#send();
  }

  close(): void {
    this.#isClosed = true;
    this.env.clearTimeout(this.#timer);
    for (const { timer } of this.#lifting) this.env.clearTimeout(timer);
    for (const { reject } of this.#waiting.values()) reject(new PylonError("CLOSED", "The client is closed", { retryable: false }));
    this.#waiting.clear();
  }

  #changed(entry: Entry): void { this.onChange.emit(new Set(entry.operations.map(each => each.entity))); }

  /** The next request: the entries that go together. */
  #next(): Entry[] {
    const batch: Entry[] = [];
    const rows = new Set<string>();
    for (const entry of this.#entries) {
      const own = entry.operations.map(each => `${each.entity}/${each.row_id}`);
      if (entry.refusal || own.some(row => rows.has(`!${row}`))) {
        for (const row of own) rows.add(`!${row}`); // what follows on these rows waits too
        continue;
      }
      if (own.some(row => rows.has(row)) || (entry.mode !== "push" && batch.length)) break;
      batch.push(entry);
      for (const row of own) rows.add(row);
      if (entry.mode !== "push" || batch.length === PUSH_OPERATIONS) break;
    }
    return batch;
  }

  async #send(): Promise<void> {
    this.#isSending = true;
    let batch: Entry[] = [];
    try {
      await null; // writes of the same turn go together
      await this.auth.ready;
      while (!this.#isClosed && (batch = this.#next()).length) {
        const storage = this.#storage;
        await Promise.all(batch.map(entry => this.#saved.get(entry.id)));
        for (const { id } of batch) this.#saved.delete(id);
        if (!batch.every(entry => this.#entries.includes(entry))) continue;
        const isKnown = !storage || await this.#verify();
        if (storage !== this.#storage) continue; // another user, another queue
        if (!isKnown) return this.#again();
        const wereSent = batch.map(entry => entry.attempts++ > 0);
        await Promise.all(batch.map((entry, number) => wereSent[number] ? null : storage?.put(entry)));
        if (storage !== this.#storage) continue;
        const kept = await (batch[0]?.mode === "push" ? this.#push(batch, wereSent) : this.#single(batch[0] as Entry));
        if (storage !== this.#storage) continue;
        this.#failures = kept ? this.#failures + 1 : 0;
        if (kept) return this.#again();
      }
    } catch (reason) {
      const error = reason instanceof PylonError ? reason : new PylonError("NETWORK", String(reason));
      if (this.#storage) this.#again();
      else for (const entry of batch) await this.#refuse(entry, error);
      if (!this.#storage && this.#next().length) this.#again();
    } finally {
      this.#isSending = false;
    }
  }

  #again(): void {
    if (this.#isClosed) return;
    const wait = this.env.random() * Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#failures++);
    this.#timer = this.env.setTimeout(() => this.wake(), wait);
  }

  /** Whether the server still knows the session: an ended one would write as nobody. */
  async #verify(): Promise<boolean> {
    const { userId } = this.auth;
    if (this.#isVerified || !userId) return true;
    const me = await this.auth.me();
    if (userId !== this.auth.userId) return false;
    this.#isVerified = me.user_id === userId || (await this.auth.refresh() && this.auth.userId === userId);
    return this.#isVerified;
  }

  /** Send operations that succeed or fail one by one. True: some have to be sent again. */
  async #push(batch: Entry[], wereSent: boolean[]): Promise<boolean> {
    const changes = batch.map(({ id, operations: [operation] }) => {
      const { kind, entity, row_id, data } = operation as Operation;
      return { op_id: id, kind, entity, row_id, ...(kind === "insert" ? { data: { ...data, id: row_id } } : data ? { data } : {}) };
    });
    // The op_ids make it happen once, so each attempt may be a request of its own.
    const answer = await this.requests.call<{ results: { status: string; seq: number; error?: unknown }[] }>(
      "POST", "/api/sync/push", { changes, client_id: this.#clientId },
    );
    const isKept = answer.results.length < batch.length; // a rate interrupted them
    for (const [number, result] of answer.results.entries()) {
      const entry = batch[number] as Entry;
      const error = result.status === "error" ? errorOf(result.error, { retryable: false }) : null;
      if (!error) await this.#acknowledge(entry, [result.seq]);
      else if (error.code === "OPTIMISTIC_ID_CONFLICT" && wereSent[number]) await this.#acknowledge(entry, [0]); // ours: the first answer was lost
      else await this.#refuse(entry, error);
    }
    return isKept;
  }

  async #single(entry: Entry): Promise<boolean> {
    const { id, mode, operations, ifSeq } = entry;
    const [first] = operations as [Operation];
    try {
      const { headers } = mode === "tx"
        ? await this.requests.send("POST", "/api/transact", operations.map(({ kind, entity, row_id, data }) => ({
          op: kind, entity, id: row_id, ...(kind === "insert" ? { data: { ...data, id: row_id } } : data ? { data } : {}),
        })), { key: id })
        : await this.requests.send(
          first.kind === "delete" ? "DELETE" : "PATCH", `/api/entities/${first.entity}/${encodeURIComponent(first.row_id)}`, first.data,
          { key: id, headers: { "If-Match": `"${ifSeq}"` } },
        );
      await this.#acknowledge(entry, operations.map(() => Number(headers.get("x-pylon-change-seq") ?? 0)));
    } catch (error) {
      if (!(error instanceof PylonError) || error.retryable) throw error;
      // A transaction says which step was refused, and why.
      const failed = ((error.body.results ?? []) as { error?: string; code?: string }[]).find(each => each.error);
      await this.#refuse(entry, failed ? new PylonError(failed.code ?? error.code, failed.error as string, { status: error.status, body: error.body }) : error);
    }
    return false;
  }

  async #acknowledge(entry: Entry, seqs: number[]): Promise<void> {
    entry.operations.forEach((operation, number) => { operation.seq = seqs[number] ?? 0; });
    const lifting = { entry, timer: null as Timer };
    lifting.timer = this.env.setTimeout(() => {
      this.#lifting = this.#lifting.filter(each => each !== lifting);
      this.#changed(entry);
    }, LIFT_MS);
    (lifting.timer as { unref?(): void } | null)?.unref?.();
    this.#lifting.push(lifting);
    await this.#remove(entry);
    this.#waiting.get(entry.id)?.resolve();
    this.#waiting.delete(entry.id);
  }

  async #refuse(entry: Entry, error: PylonError, isKept = this.#storage !== null): Promise<void> {
    if (isKept) {
      entry.refusal = { code: error.code, message: error.message, hint: error.hint };
      await this.#storage?.put(entry);
      this.#changed(entry);
    } else await this.#remove(entry);
    this.onRefused.emit(error, entry);
    const waiting = this.#waiting.get(entry.id);
    this.#waiting.delete(entry.id);
    waiting?.reject(error);
  }

  async #remove(entry: Entry): Promise<void> {
    this.#entries = this.#entries.filter(each => each !== entry);
    this.#bytes = this.#entries.length ? this.#bytes : 0;
    this.#changed(entry);
    await this.#storage?.remove(entry.id);
  }
}
