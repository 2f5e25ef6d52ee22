/**
 * The offline extension: replicas of whole entities, and an outbox that outlives the page, in
 * IndexedDB. `pylon({ offline: offline({ replica: ["Room"] }) })`.
 *
 * Each user has a database of their own. Rows are stored in buckets, by the last two digits of their
 * ids. Buckets and the cursor are written in one transaction, so a stored replica is always that of one
 * moment; one tab writes it. A write is stored before it is
 * sent. Without IndexedDB both live in memory. docs/clients/behaviour.md has the rules.
 */
import { type ChangeStream, type Core, type Entry, type Environment, type Extension, type OutboxStorage, PylonError, type Row, type RowSource } from "./pylon.js";

export interface OfflineOptions {
  /** The entities of which the client keeps every row that its user may read. */
  replica?: readonly string[];
}

interface Change {
  readonly seq: number;
  readonly entity: string;
  readonly row_id: string;
  readonly kind: "insert" | "update" | "delete";
  readonly data?: Record<string, unknown>;
}

interface PullPage {
  readonly changes: Change[];
  readonly cursor: { readonly last_seq: number };
  readonly has_more: boolean;
}

interface Meta { readonly cursor: number; readonly entities: string }
interface StoredEntry { readonly order: number; readonly entry: Entry }
/** Rows of an entity, as JSON: reading 256 texts is faster than cloning 10,000 objects. */
interface Bucket { readonly entity: string; readonly rows: string }

const FLUSH_MS = 200;
const ROWS = "rows";
const META = "meta";
const OUTBOX = "outbox";

/** What is kept of one user. */
interface Store {
  all<T>(name: string): Promise<T[]>;
  /** Put and delete by key, in one transaction; `clears` first empties the stores named. */
  write(changes: { name: string; puts?: Iterable<[key: string, value: unknown]>; deletes?: Iterable<string> }[], clears?: string[]): Promise<void>;
  close(): void;
}

function memoryStore(): Store {
  const stores = new Map<string, Map<string, unknown>>([[ROWS, new Map()], [META, new Map()], [OUTBOX, new Map()]]);
  return {
    all: async <T>(name: string) => [...(stores.get(name)?.values() ?? [])] as T[],
    write: async (changes, clears = []) => {
      for (const name of clears) stores.get(name)?.clear();
      for (const { name, puts = [], deletes = [] } of changes) {
        for (const [key, value] of puts) stores.get(name)?.set(key, value);
        for (const key of deletes) stores.get(name)?.delete(key);
      }
    },
    close: () => {},
  };
}

const settled = <T>(request: IDBRequest<T>): Promise<T> => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function openStore(env: Environment, name: string): Promise<Store> {
  if (!env.indexedDB) return memoryStore();
  let database: IDBDatabase;
  try {
    const request = env.indexedDB.open(name, 1);
    request.onupgradeneeded = () => { for (const store of [ROWS, META, OUTBOX]) request.result.createObjectStore(store); };
    database = await settled(request);
    database.onversionchange = () => database.close();
  } catch {
    return memoryStore(); // a private window, or a full disk
  }
  return {
    all: store => settled(database.transaction(store).objectStore(store).getAll()),
    write: (changes, clears = []) => new Promise((resolve, reject) => {
      const names = [...new Set([...clears, ...changes.map(each => each.name)])];
      // "strict": an acknowledged transaction is on the disk, also after a loss of power.
      const transaction = database.transaction(names, "readwrite", { durability: names.includes(OUTBOX) ? "strict" : "relaxed" });
      transaction.oncomplete = () => resolve();
      transaction.onabort = () => reject(transaction.error);
      for (const each of clears) transaction.objectStore(each).clear();
      for (const { name: store, puts = [], deletes = [] } of changes) {
        const target = transaction.objectStore(store);
        for (const [key, value] of puts) target.put(value, key);
        for (const key of deletes) target.delete(key);
      }
    }),
    close: () => database.close(),
  };
}

class UserOutbox implements OutboxStorage {
  #last = 0;
  readonly #orders = new Map<string, number>();

  constructor(private readonly env: Environment, private readonly store: Promise<Store>) {}

  async load(): Promise<Entry[]> {
    const stored = (await (await this.store).all<StoredEntry>(OUTBOX)).sort((a, b) => a.order - b.order);
    for (const { order, entry } of stored) this.#orders.set(entry.id, order);
    return stored.map(each => each.entry);
  }

  async put(entry: Entry): Promise<void> {
    // The order of the calls is that of the writes, whatever the clock does.
    const order = this.#orders.get(entry.id) ?? (this.#last = Math.max(this.#last + 1, this.env.now() * 1_000));
    this.#orders.set(entry.id, order);
    const stored: StoredEntry = { order, entry: structuredClone(entry) };
    try {
      await (await this.store).write([{ name: OUTBOX, puts: [[entry.id, stored]] }]);
    } catch (error) {
      throw new PylonError("QUEUE_FULL", `The browser did not store the write: ${error}`, { retryable: false });
    }
  }

  async remove(id: string): Promise<void> {
    this.#orders.delete(id);
    await (await this.store).write([{ name: OUTBOX, deletes: [id] }]);
  }
}

/** The replicas of one user. */
class Replica implements RowSource, ChangeStream {
  #cursor: number | null = null;
  #rows = new Map<string, Map<string, Row>>();
  readonly #listeners = new Map<string, Set<() => void>>();
  #dirty = new Set<string>(); // keys of buckets
  #isWhole = false; // the next flush writes all rows
  #isWriter = false;
  #isOpen = true;
  #timer: unknown = null;
  #release: () => void = () => {};
  readonly #loaded: Promise<void>;

  constructor(
    private readonly core: Core, readonly entities: readonly string[], private readonly store: Promise<Store>, lock: string,
    listeners: Map<string, Set<() => void>>,
  ) {
    this.#listeners = listeners;
    for (const entity of entities) this.#rows.set(entity, new Map());
    this.#loaded = this.#load();
    void core.env.lock(lock, async () => {
      await this.#loaded;
      if (!this.#isOpen) return;
      this.#isWriter = true;
      await new Promise<void>(resolve => { this.#release = resolve; });
    });
  }

  rows(entity: string): Iterable<Row> { return this.#rows.get(entity)?.values() ?? []; }
  seq(): number | null { return this.#cursor; }
  cursor(): number | null { return this.#cursor; }

  subscribe(entity: string, listener: () => void): () => void {
    const own = this.#listeners.get(entity) ?? new Set();
    this.#listeners.set(entity, own.add(listener));
    return () => { own.delete(listener); };
  }

  forget(): void { this.#cursor = null; }

  async prepare(): Promise<void> {
    await this.#loaded;
    for (let hasMore = true; hasMore && this.#isOpen;) {
      const since = this.#cursor ?? 0;
      const query = new URLSearchParams({ since: String(since), entities: this.entities.join(",") });
      let page: PullPage;
      try {
        page = await this.core.requests.call<PullPage>("GET", `/api/sync/pull?${query}`);
      } catch (error) {
        if (!(error instanceof PylonError) || error.status !== 410 || since === 0) throw error;
        this.#cursor = null; // the log no longer has the cursor
        continue;
      }
      if (since === 0) {
        for (const rows of this.#rows.values()) rows.clear();
        this.#isWhole = true;
      }
      for (const change of page.changes) this.#apply(change);
      this.#cursor = page.cursor.last_seq;
      this.#changed(since === 0 ? this.entities : new Set(page.changes.map(change => change.entity)));
      hasMore = page.has_more;
    }
  }

  receive(message: Partial<Change> & { type?: string }): void {
    const { seq } = message;
    if (this.#cursor === null || typeof seq !== "number" || seq <= this.#cursor) return;
    if (message.type === "pong") this.#cursor = seq; // nothing up to here is missing
    else if (message.entity && message.kind) {
      this.#apply(message as Change);
      this.#cursor = seq;
      this.#changed([message.entity]);
    }
  }

  /** Stop. `clears`: the user has signed out, and the rows go. */
  async close(clears = false): Promise<void> {
    this.#isOpen = false;
    this.core.env.clearTimeout(this.#timer);
    const store = await this.store;
    await this.#loaded;
    if (clears) {
      await store.write([], [ROWS, META]).catch(() => undefined);
      this.#dirty.clear();
    } else await this.#flush();
    this.#release();
    store.close();
  }

  async #load(): Promise<void> {
    const store = await this.store;
    const [[meta], buckets] = await Promise.all([store.all<Meta>(META), store.all<Bucket>(ROWS)]);
    if (meta?.entities !== this.entities.join(",")) return;
    for (const { entity, rows } of buckets) {
      for (const row of JSON.parse(rows) as Row[]) this.#rows.get(entity)?.set(row.id, row);
    }
    this.#cursor = meta.cursor;
    this.#tell(this.entities);
  }

  #apply({ entity, row_id, kind, data }: Change): void {
    const rows = this.#rows.get(entity);
    if (!rows) return;
    if (kind === "delete") rows.delete(row_id);
    else if (data) rows.set(row_id, { ...(kind === "update" ? rows.get(row_id) : null), ...data, id: row_id });
    this.#dirty.add(bucketOf(entity, row_id));
  }

  #changed(entities: Iterable<string>): void {
    this.#tell(entities);
    this.#timer ??= this.core.env.setTimeout(() => { this.#timer = null; void this.#flush(); }, FLUSH_MS);
  }

  #tell(entities: Iterable<string>): void {
    for (const entity of entities) for (const listener of [...(this.#listeners.get(entity) ?? [])]) listener();
  }

  async #flush(): Promise<void> {
    if (this.#cursor === null) return;
    if (!this.#isWriter) {
      this.#dirty.clear();
      this.#isWhole = true; // if this tab becomes the writer, it knows more than what is stored
      return;
    }
    const dirty = this.#dirty;
    const isWhole = this.#isWhole;
    const meta: Meta = { cursor: this.#cursor, entities: this.entities.join(",") };
    const buckets = new Map<string, { entity: string; rows: Row[] }>();
    for (const [entity, rows] of this.#rows) {
      for (const row of rows.values()) {
        const key = bucketOf(entity, row.id);
        if (!isWhole && !dirty.has(key)) continue;
        const bucket = buckets.get(key);
        if (bucket) bucket.rows.push(row);
        else buckets.set(key, { entity, rows: [row] });
      }
    }
    const puts = [...buckets].map(([key, { entity, rows }]): [string, Bucket] => [key, { entity, rows: JSON.stringify(rows) }]);
    const deletes = [...dirty].filter(key => !buckets.has(key)); // their last row has gone
    this.#dirty = new Set();
    this.#isWhole = false;
    try {
      await (await this.store).write([{ name: ROWS, puts, deletes }, { name: META, puts: [["meta", meta]] }], isWhole ? [ROWS] : []);
    } catch {
      this.#isWhole = true; // the quota is spent: what is stored is older, and still of one moment
    }
  }
}

const bucketOf = (entity: string, id: string): string => `${entity}/${id.slice(-2)}`;

/** Make the extension. */
export function offline(options: OfflineOptions = {}): Extension {
  const entities = options.replica ?? [];
  const listeners = new Map<string, Set<() => void>>();
  let replica: Replica | null = null;
  let endings: (() => void)[] = [];
  const extension: Extension = {
    stream: null,
    source: entity => entities.includes(entity) ? source : null,
    attach(core) {
      const start = (user: Promise<string | null>) => {
        const name = user.then(id => `pylon:${core.name}:${core.requests.url}:${id ?? ""}`);
        const store = name.then(each => openStore(core.env, each));
        void core.outbox.use(new UserOutbox(core.env, store));
        if (!entities.length) return;
        replica = new Replica(core, entities, store, `pylon:${core.name}:${core.requests.url}:replica`, listeners);
        core.connection.stream = extension.stream = replica;
      };
      start(core.auth.ready.then(() => core.auth.userId));
      endings = [
        core.auth.onChange((session, isSameUser) => {
          if (isSameUser) return;
          const before = replica;
          start(Promise.resolve(before?.close(session === null)).then(() => session?.user_id ?? null));
        }),
        core.connection.onMessage.add(message => replica?.receive(message as Partial<Change>)),
        ...(entities.length ? [core.connection.hold()] : []),
      ];
    },
    close() {
      for (const end of endings) end();
      void replica?.close();
    },
  };
  const source: RowSource = {
    rows: entity => replica?.rows(entity) ?? [],
    seq: () => replica?.seq() ?? null,
    subscribe: (entity, listener) => replica?.subscribe(entity, listener) ?? (() => {}),
  };
  return extension;
}
