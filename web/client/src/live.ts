/**
 * Live windows: the rows of a filter, an order and a limit, kept up to date.
 *
 * Equal windows share one subscription. A window starts with its first listener and ends a second
 * after its last. Over a WebSocket the server sends what changes; over an event stream or by polling
 * the window is read again when its entity may have changed. Pending writes lie over the rows.
 */
import { matches, comparator, type Order, type Row, type Where } from "./conditions.js";
import type { Connection, Message } from "./connection.js";
import { type Environment, Listeners, type Timer } from "./environment.js";
import { errorOf, PylonError } from "./errors.js";
import type { Outbox } from "./outbox.js";
import { overlaid, type WindowShape } from "./overlay.js";
import type { Requests } from "./requests.js";

/** stale: the connection is being made again; offline: the server cannot be reached. */
export type LiveState = "loading" | "live" | "stale" | "offline" | "error";

export interface Snapshot<T> {
  readonly rows: readonly T[];
  readonly state: LiveState;
  readonly error: PylonError | null;
  /** Whether the server may have rows beyond the limit. */
  readonly more: boolean;
}

export interface LiveOptions {
  where?: Where | undefined;
  order?: Order | undefined;
  limit?: number | undefined;
  after?: Record<string, unknown> | undefined;
  before?: Record<string, unknown> | undefined;
}

/** Rows that are kept elsewhere: a replica. */
export interface RowSource {
  rows(entity: string): Iterable<Row>;
  /** The seq up to which the source has all changes; null before its first rows. */
  seq(): number | null;
  subscribe(entity: string, listener: () => void): () => void;
}

export interface LiveServices {
  readonly env: Environment;
  readonly connection: Connection;
  readonly requests: Requests;
  readonly outbox: Outbox;
  /** The source of an entity that has a replica. */
  source(entity: string): RowSource | null;
}

const LINGER_MS = 1_000;
const HINT_MS = 100;
const RESUBSCRIBE_MS = 1_000;
const AGAIN = new Set(["RESYNC_REQUIRED", "IDENTITY_CHANGED", "UNAVAILABLE"]);
const MANY = 1_000;

/** The body of a query, as the server takes it. */
export function filterOf({ where, order, limit, after, before }: LiveOptions): Record<string, unknown> {
  return {
    ...where, ...(order && { $order: order }), ...(limit !== undefined && { $limit: limit }),
    ...(after && { $after: after }), ...(before && { $before: before }),
  };
}

/** What an app holds of a window. */
export class Live<T = Row> implements AsyncIterable<readonly T[]> {
  readonly #ends = new Set<() => void>();
  #limit: number | undefined;
  #snapshot: Snapshot<T> | null = null;
  #of: Snapshot<Row> | null = null;

  constructor(private readonly window: () => SharedWindow, limit: number | undefined) {
    this.#limit = limit;
  }

  /** The rows now; none before the first listener. */
  get rows(): readonly T[] { return this.snapshot.rows; }
  get state(): LiveState { return this.snapshot.state; }
  get error(): PylonError | null { return this.snapshot.error; }

  /** The state now. The same object until something changes. */
  get snapshot(): Snapshot<T> {
    const shared = this.window();
    const all = shared.snapshot;
    if (all === this.#of && this.#snapshot) return this.#snapshot;
    this.#of = all;
    const limit = this.#limit;
    const isWider = limit !== undefined && all.rows.length > limit; // another holder asked for more
    this.#snapshot = (isWider ? {
      ...all, more: true, rows: shared.shape.before ? all.rows.slice(-limit) : all.rows.slice(0, limit),
    } : all) as Snapshot<T>;
    return this.#snapshot;
  }

  /** Call `listener` now and at each change. Returns the function that ends this. */
  subscribe(listener: (snapshot: Snapshot<T>) => void): () => void {
    const leave = this.window().listen(() => listener(this.snapshot));
    const end = () => { if (this.#ends.delete(end)) leave(); };
    this.#ends.add(end);
    listener(this.snapshot);
    return end;
  }

  /** Resolves with the rows as soon as the server has sent them. */
  ready(): Promise<readonly T[]> {
    return new Promise((resolve, reject) => {
      let end: (() => void) | null = null;
      let isDone = false;
      end = this.subscribe(({ rows, state, error }) => {
        if (state !== "live" && state !== "error") return;
        isDone = true;
        end?.();
        if (state === "live") resolve(rows);
        else reject(error);
      });
      if (isDone) end();
    });
  }

  /** Widen the window by up to `count` rows. Resolves with whether there may be still more. */
  async more(count = 50): Promise<boolean> {
    const shared = this.window();
    if (this.#limit === undefined) return false;
    const wanted = this.#limit + count;
    if (shared.limit < wanted) await shared.more(wanted - shared.limit);
    this.#limit = wanted;
    this.#of = null;
    shared.show();
    return this.snapshot.more;
  }

  /** Subscribe again after an error. */
  retry(): void { this.window().start(); }

  /** End all listeners of this object. */
  close(): void { for (const end of [...this.#ends]) end(); }

  /** The rows at each change; ends never by itself, and throws the window's error. */
  async *[Symbol.asyncIterator](): AsyncGenerator<readonly T[]> {
    let news: Snapshot<T> | null = null;
    let wake: () => void = () => {};
    let isOpen = true;
    const end = this.subscribe(snapshot => { news = snapshot; wake(); });
    this.#ends.add(() => { isOpen = false; wake(); });
    try {
      while (isOpen) {
        const next = news as Snapshot<T> | null;
        news = null;
        if (next?.state === "error") throw next.error;
        if (next && next.state !== "loading") yield next.rows;
        else if (!news) await new Promise<void>(resolve => { wake = resolve; });
      }
    } finally {
      end();
    }
  }
}

/** One subscription, for all holders of equal windows. */
export class SharedWindow {
  limit: number;
  #rows: Row[] = [];
  #parts: Row[] | null = null; // of a result that comes in several messages
  #state: LiveState = "loading";
  #error: PylonError | null = null;
  #snapshot: Snapshot<Row> | null = null;
  #seq = 0; // of the last message
  readonly #rowSeqs = new Map<string, number>(); // of changes of rows that have pending writes
  #isDirty = false;
  #hasAll = false;
  #timer: Timer = null;
  #linger: Timer = null;
  #endings: (() => void)[] = [];
  #reading = 0;
  #asking: { count: number; got: number; resolve(): void; reject(error: PylonError): void }[] = [];
  readonly #listeners = new Listeners<[]>();

  constructor(
    private readonly services: LiveServices, readonly subId: string, readonly entity: string,
    readonly shape: WindowShape, private readonly forget: () => void,
  ) {
    this.limit = shape.limit ?? Number.POSITIVE_INFINITY;
  }

  get isOpen(): boolean { return this.#endings.length > 0; }
  get isLocal(): boolean { return this.services.source(this.entity) !== null; }

  get snapshot(): Snapshot<Row> {
    if (!this.#snapshot) {
      const shape = { ...this.shape, limit: this.shape.limit === undefined ? undefined : this.limit };
      const rows = overlaid(this.#rows, this.services.outbox.over(this.entity).filter(each => !this.#hasSeen(each)), shape);
      this.#snapshot = { rows, state: this.#state, error: this.#error, more: this.#rows.length >= this.limit && !this.#hasAll };
    }
    return this.#snapshot;
  }

  listen(listener: () => void): () => void {
    const end = this.#listeners.add(listener);
    this.services.env.clearTimeout(this.#linger);
    if (!this.isOpen) this.#open();
    return () => {
      end();
      if (this.#listeners.size) return;
      this.#linger = this.services.env.setTimeout(() => this.close(), LINGER_MS);
      (this.#linger as { unref?(): void } | null)?.unref?.();
    };
  }

  /** Ask for the rows. */
  start(): void {
    const { connection } = this.services;
    this.#parts = null;
    this.#refuseAsking(new PylonError("NETWORK", "The connection was lost"));
    if (this.isLocal) this.#readSource();
    else if (!connection.send({ type: "subscribe", sub_id: this.subId, entity: this.entity, filter: this.#filter() }) && connection.status.state === "live") void this.#read();
  }

  async more(count: number): Promise<void> {
    if (this.isLocal || !this.services.connection.isSocket) {
      this.limit += count;
      await (this.isLocal ? this.#readSource() : this.#read());
      return;
    }
    await new Promise<void>((resolve, reject) => {
      this.#asking.push({ count, got: 0, resolve, reject });
      this.services.connection.send({ type: "more", sub_id: this.subId, count });
    });
    this.limit += count;
    this.show();
  }

  receive(message: Message): void {
    const seq = Number(message.seq ?? 0);
    if (message.type === "diff") this.#apply(message, seq);
    else if (message.type === "subscribed") {
      this.#parts = [...(this.#parts ?? []), ...(message.rows as Row[])];
      if (message.last === false) return;
      this.#rows = this.#parts;
      this.#parts = null;
      this.#hasAll = false;
      this.#live(seq);
    } else if (message.type === "more") {
      const asked = this.#asking[0];
      const rows = message.rows as Row[];
      if (this.shape.before) this.#rows.unshift(...rows);
      else this.#rows.push(...rows);
      if (asked) asked.got += rows.length;
      if (message.last !== false && asked) {
        this.#asking.shift();
        this.#hasAll = asked.got < asked.count;
        asked.resolve();
      }
    } else if (message.type === "error") {
      const error = errorOf(message, { retryable: false });
      if (message.for === "more") this.#asking.shift()?.reject(error);
      else if (AGAIN.has(error.code)) this.#soon(() => this.start(), RESUBSCRIBE_MS * (0.5 + this.services.env.random()));
      else this.#fail(error);
    }
    this.show();
  }

  /** Tell the listeners, once for all that happens in this turn. */
  show(): void {
    this.#snapshot = null;
    if (this.#isDirty) return;
    this.#isDirty = true;
    queueMicrotask(() => {
      this.#isDirty = false;
      this.#listeners.emit();
    });
  }

  close(): void {
    if (!this.isOpen) return;
    this.services.env.clearTimeout(this.#timer);
    this.services.env.clearTimeout(this.#linger);
    this.services.connection.send({ type: "unsubscribe", sub_id: this.subId });
    for (const end of this.#endings) end();
    this.#endings = [];
    this.#refuseAsking(new PylonError("CLOSED", "The window was closed", { retryable: false }));
    this.forget();
  }

  #filter(): Record<string, unknown> {
    return filterOf({ ...this.shape, limit: this.shape.limit === undefined ? undefined : this.limit });
  }

  #open(): void {
    const { connection, outbox } = this.services;
    const source = this.services.source(this.entity);
    this.#endings = [
      connection.hold(),
      connection.onStatus.add(({ state, error }) => {
        if (state === "failed") this.#fail(error as PylonError);
        else if (state !== "live") this.#wait(state === "offline" ? "offline" : "stale");
      }),
      outbox.onChange.add(entities => {
        if (!entities.has(this.entity)) return;
        if (!outbox.over(this.entity).length) this.#rowSeqs.clear();
        this.show();
      }),
      connection.onOpen.add(() => this.start()),
      ...(source ? [source.subscribe(this.entity, () => this.#soon(() => this.#readSource(), 0))] : [
        connection.onHint.add(entity => { if (entity === null || entity === this.entity) this.#soon(() => void this.#read(), HINT_MS); }),
      ]),
    ];
    if (source || connection.status.state === "live") this.start();
    if (!source) connection.hint();
  }

  #wait(state: "offline" | "stale"): void {
    const isLoaded = this.#state !== "loading" && this.#state !== "error";
    if (this.isLocal && this.services.source(this.entity)?.seq() === null && state === "stale") return;
    const next = state === "offline" || isLoaded ? state : "loading";
    if (next === this.#state) return;
    this.#state = next;
    this.#error = null;
    this.show();
  }

  #live(seq: number): void {
    this.#seq = Math.max(this.#seq, seq);
    for (const operation of this.services.outbox.over(this.entity)) {
      if (operation.seq !== null && operation.seq <= seq) this.#rowSeqs.set(operation.row_id, seq);
    }
    this.#state = "live";
    this.#error = null;
  }

  #fail(error: PylonError): void {
    this.#state = "error";
    this.#error = error;
    this.show();
  }

  #refuseAsking(error: PylonError): void {
    for (const asked of this.#asking) asked.reject(error);
    this.#asking = [];
  }

  #soon(work: () => void, delay_ms: number): void {
    const { env } = this.services;
    if (this.#timer !== null) return;
    this.#timer = env.setTimeout(() => { this.#timer = null; if (this.isOpen) work(); }, delay_ms);
  }

  /** Whether the rows have what became of a write. */
  #hasSeen(operation: { row_id: string; seq: number | null }): boolean {
    const { seq } = operation;
    return seq !== null && (this.#seq > seq || (this.#rowSeqs.get(operation.row_id) ?? -1) >= seq);
  }

  #apply(message: Message, seq: number): void {
    const id = message.row_id as string;
    const rows = this.#rows;
    const at = rows.findIndex(row => row.id === id);
    if (message.kind === "delete") {
      if (at >= 0) rows.splice(at, 1);
    } else {
      const row = { ...(message.data as object), id } as Row;
      if (message.kind === "update" && !("after" in message) && at >= 0) rows[at] = row;
      else {
        if (at >= 0) rows.splice(at, 1);
        if ("after" in message) rows.splice(message.after === null ? 0 : rows.findIndex(each => each.id === message.after) + 1, 0, row);
        else rows.splice(idPlace(rows, id), 0, row);
      }
    }
    if (rows.length < this.limit && this.shape.limit !== undefined) this.#hasAll = false;
    this.#seq = Math.max(this.#seq, seq);
    if (this.services.outbox.over(this.entity).some(each => each.row_id === id)) this.#rowSeqs.set(id, seq);
  }

  /** Without a socket: the result as of now. */
  async #read(): Promise<void> {
    if (this.#reading) { this.#reading = 2; return; }
    do {
      this.#reading = 1;
      const acknowledged = this.services.outbox.over(this.entity).filter(each => each.seq !== null);
      try {
        const rows = await this.services.requests.call<Row[]>("POST", `/api/query/${this.entity}`, this.#filter(), { headers: { Accept: "application/json" } });
        if (this.services.connection.isSocket) break; // a subscription has begun meanwhile
        const isChanged = JSON.stringify(rows) !== JSON.stringify(this.#rows);
        this.#rows = rows;
        for (const { row_id, seq } of acknowledged) this.#rowSeqs.set(row_id, seq as number);
        if (isChanged) this.services.connection.hint();
        this.#live(0);
        this.show();
      } catch (error) {
        if (error instanceof PylonError && !error.retryable) this.#fail(error);
        else this.#wait("stale");
      }
    } while (this.#reading as number === 2 && this.isOpen);
    this.#reading = 0;
  }

  /** From a replica. */
  #readSource(): void {
    const source = this.services.source(this.entity);
    if (!source) return;
    const { where, order, after, before } = this.shape;
    const compare = comparator(order);
    let rows: Row[] = [];
    for (const row of source.rows(this.entity)) {
      if (matches(where, row) && (!after || compare(row, after as Row) > 0) && (!before || compare(row, before as Row) < 0)) rows.push(row);
    }
    rows.sort(compare);
    this.#hasAll = rows.length <= this.limit;
    if (rows.length > this.limit) rows = before ? rows.slice(-this.limit) : rows.slice(0, this.limit);
    this.#rows = rows;
    const seq = source.seq();
    if (seq === null) return;
    const { state } = this.services.connection.status;
    this.#live(seq);
    if (state !== "live") this.#state = state === "offline" ? "offline" : "stale";
    this.show();
  }
}

function idPlace(rows: readonly Row[], id: string): number {
  let [low, high] = [0, rows.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if ((rows[middle] as Row).id < id) low = middle + 1;
    else high = middle;
  }
  return low;
}

/** All windows of a client. */
export class LiveWindows {
  readonly #byKey = new Map<string, SharedWindow>();
  readonly #bySubId = new Map<string, SharedWindow>();
  #count = 0;

  constructor(private readonly services: LiveServices) {
    services.connection.onMessage.add(message => {
      if (typeof message.sub_id === "string") this.#bySubId.get(message.sub_id)?.receive(message);
    });
    services.connection.watched = () => new Set([...this.#byKey.values()].filter(each => each.isOpen && !each.isLocal).map(each => each.entity));
  }

  open<T>(entity: string, options: LiveOptions): Live<T> {
    if (options.limit !== undefined && !(options.limit >= 1 && options.limit <= MANY)) {
      throw new PylonError("INVALID_QUERY", `limit is ${options.limit}: a live window has 1 to ${MANY} rows`, { retryable: false });
    }
    const limit = options.limit ?? (options.order || options.after || options.before ? MANY : undefined);
    const key = JSON.stringify([entity, options.where ?? {}, options.order ?? null, limit ?? null, options.after ?? null, options.before ?? null]);
    return new Live<T>(() => this.#shared(key, entity, { ...options, limit }), limit);
  }

  close(): void { for (const each of [...this.#byKey.values()]) each.close(); }

  #shared(key: string, entity: string, shape: WindowShape): SharedWindow {
    let found = this.#byKey.get(key);
    if (!found) {
      const subId = `w${++this.#count}`;
      found = new SharedWindow(this.services, subId, entity, shape, () => {
        this.#byKey.delete(key);
        this.#bySubId.delete(subId);
      });
      this.#byKey.set(key, found);
      this.#bySubId.set(subId, found);
    }
    return found;
  }
}
