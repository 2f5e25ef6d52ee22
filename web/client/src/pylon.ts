/**
 * The client of a Pylon server. `pylon({url})` makes one; docs/clients/javascript.md shows its use and
 * docs/clients/behaviour.md has the rules that it keeps.
 */
import { Auth, type Session, type SessionStore, type StoreName } from "./auth.js";
import { type ChangeStream, Connection, type ConnectionStatus, eventsOf, type Transport } from "./connection.js";
import type { Row } from "./conditions.js";
import type { LiveDocument, LoroLike } from "./documents.js";
import { defaultEnvironment, type Environment, Listeners, rowIds } from "./environment.js";
import { errorOf, PylonError } from "./errors.js";
import { Files } from "./files.js";
import { filterOf, type Live, type LiveOptions, LiveWindows, type RowSource } from "./live.js";
import { type Entry, Outbox, type OutboxStorage, type WriteOptions } from "./outbox.js";
import type { Operation } from "./overlay.js";
import { type CallOptions, Requests } from "./requests.js";
import { Room } from "./rooms.js";
import type { AnySchema, ArgsOf, EntityName, FunctionName, InsertOf, QueryOf, ResultOf, RowOf, UntypedSchema, UpdateOf } from "./schema.js";
import { Shard } from "./shards.js";

export type { Member, RoomSnapshot } from "./rooms.js";
export type { DocumentStatus } from "./documents.js";
export type { LiveState, Snapshot } from "./live.js";
export type { PendingInput, ShardStatus } from "./shards.js";
export type { UploadedFile, UploadOptions } from "./files.js";
export type { User } from "./auth.js";
export type * from "./schema.js";
export type {
  CallOptions, ChangeStream, ConnectionStatus, Entry, Environment, Live, LiveDocument, LiveOptions, LoroLike, Operation, OutboxStorage,
  Room, Row, RowSource, Session, SessionStore, Shard, StoreName, Transport, WriteOptions,
};
export { comparator, compareValues, matches } from "./conditions.js";
export { PylonError };

/** What keeps replicas and the outbox of a user: see offline.js. */
export interface Extension {
  /** Called once; `core` is what the extension may use. */
  attach(core: Core): void;
  /** The rows of an entity that has a replica; null: it has none. */
  source(entity: string): RowSource | null;
  stream: ChangeStream | null;
  close(): void;
}

export interface Core {
  readonly env: Environment;
  readonly requests: Requests;
  readonly auth: Auth;
  readonly connection: Connection;
  readonly outbox: Outbox;
  /** Names what the client stores in the browser. */
  readonly name: string;
}

export interface Options {
  /** Of the server; by default the page's own. */
  url?: string;
  /** Tells apart what several apps of one origin store. */
  name?: string;
  /** Where the session lies: "local" (localStorage), "memory", "cookie" (the browser's), or a store of the app. */
  store?: StoreName | SessionStore;
  /** A token to use: of an API key, or of a session that came in another way. */
  token?: string;
  /** In the order of preference. */
  transports?: readonly Transport[];
  /** Of one attempt of a request. */
  timeout_ms?: number;
  /** How often a failed request is sent again. */
  retries?: number;
  offline?: Extension;
  environment?: Partial<Environment>;
}

/** What `app.tx` gives its function: the writes happen all or not at all. */
export interface Transaction<S extends AnySchema> {
  insert<E extends EntityName<S>>(entity: E, data: InsertOf<S, E>): string;
  update<E extends EntityName<S>>(entity: E, id: string, data: UpdateOf<S, E>): void;
  delete<E extends EntityName<S>>(entity: E, id: string): void;
}

type Calls<S extends AnySchema> = {
  /** Call a function of the server. */
  <F extends FunctionName<S>>(name: F, args?: ArgsOf<S, F>, options?: CallOptions): Promise<ResultOf<S, F>>;
  /** Call a function that answers piece by piece. */
  stream<F extends FunctionName<S>>(name: F, args?: ArgsOf<S, F>, options?: CallOptions): AsyncGenerator<unknown, ResultOf<S, F>>;
};

interface Events {
  /** A write was refused, and its rows are the server's again. */
  error: (error: PylonError, entry: Entry) => void;
  status: (status: ConnectionStatus) => void;
}

const STREAM_TIMEOUT_MS = 60_000;
const PAGE = 100;

export class Pylon<S extends AnySchema = UntypedSchema> {
  readonly auth: Auth;
  readonly files: Files;
  /** Writes on their way, and those that were refused. */
  readonly outbox: Outbox;
  readonly url: string;
  readonly #env: Environment;
  readonly #requests: Requests;
  readonly #connection: Connection;
  readonly #windows: LiveWindows;
  readonly #offline: Extension | null;
  readonly #newId: () => string;
  readonly #open = new Set<() => unknown>();
  readonly #errors = new Listeners<[PylonError, Entry]>();

  constructor(options: Options = {}) {
    const env = this.#env = { ...defaultEnvironment(), ...options.environment };
    const url = (options.url ?? globalThis.location?.origin ?? "http://localhost:4321").replace(/\/+$/, "");
    const name = options.name ?? "default";
    this.url = url;
    this.#newId = rowIds(env);
    const requests = this.#requests = new Requests(env, url, () => this.auth, options.timeout_ms ?? 30_000, options.retries ?? 2);
    this.auth = new Auth(env, () => requests, `pylon:${name}:session`, options.store ?? "local", options.token);
    const connection = this.#connection = new Connection(env, requests, this.auth, options.transports ?? ["ws", "sse", "poll"]);
    const outbox = this.outbox = new Outbox(env, requests, this.auth);
    this.files = new Files(env, requests);
    this.#offline = options.offline ?? null;
    this.#windows = new LiveWindows({ env, connection, requests, outbox, source: entity => this.#offline?.source(entity) ?? null });
    outbox.onRefused.add((error, entry) => this.#errors.emit(error, entry));
    connection.onOpen.add(() => outbox.wake(true));
    this.auth.onChange((_, isSameUser) => { if (!isSameUser && !this.#offline) void outbox.use(null); });
    this.#offline?.attach({ env, requests, auth: this.auth, connection, outbox, name });
  }

  /** The connection now. */
  get status(): ConnectionStatus { return this.#connection.status; }

  on<K extends keyof Events>(event: K, listener: Events[K]): () => void {
    const listeners = (event === "error" ? this.#errors : this.#connection.onStatus) as unknown as Listeners<unknown[]>;
    return listeners.add(listener as (...args: unknown[]) => void);
  }

  /** Connect now, also after a refusal. */
  retry(): void { this.#connection.retry(); }

  // --- Reading --------------------------------------------------------------------------

  /** Rows that stay up to date: "the newest 50 messages of this room". Starts with its first listener. */
  live<E extends EntityName<S>>(entity: E, options: QueryOf<RowOf<S, E>> = {}): Live<RowOf<S, E>> {
    return this.#windows.open(entity, options as LiveOptions);
  }

  /** One row that stays up to date; `rows` has it, or is empty. */
  row<E extends EntityName<S>>(entity: E, id: string): Live<RowOf<S, E>> {
    return this.#windows.open(entity, { where: { id } });
  }

  /** The rows of this moment. */
  query<E extends EntityName<S>>(entity: E, options: QueryOf<RowOf<S, E>> = {}, call: CallOptions = {}): Promise<RowOf<S, E>[]> {
    return this.#call("POST", `/api/query/${entity}`, filterOf(options as LiveOptions), call);
  }

  /** All rows, page by page. */
  async *pages<E extends EntityName<S>>(entity: E, options: QueryOf<RowOf<S, E>> = {}, call: CallOptions = {}): AsyncGenerator<RowOf<S, E>[]> {
    const limit = options.limit ?? PAGE;
    const fields = [...Object.keys(options.order ?? {}), "id"];
    let { after } = options as LiveOptions;
    for (;;) {
      const rows = await this.query(entity, { ...options, limit, after } as QueryOf<RowOf<S, E>>, call);
      if (rows.length) yield rows;
      if (rows.length < limit) return;
      const last = rows.at(-1) as Record<string, unknown>;
      after = Object.fromEntries(fields.map(field => [field, last[field] ?? null]));
    }
  }

  /** One row, or null. */
  async get<E extends EntityName<S>>(entity: E, id: string, call: CallOptions = {}): Promise<RowOf<S, E> | null> {
    try {
      return await this.#call("GET", `/api/entities/${entity}/${encodeURIComponent(id)}`, undefined, call);
    } catch (error) {
      if (error instanceof PylonError && error.status === 404 && error.code !== "ENTITY_NOT_FOUND") return null;
      throw error;
    }
  }

  // --- Writing --------------------------------------------------------------------------

  /** A new id, for a row that others refer to before it is there. */
  newId(): string { return this.#newId(); }

  /** Insert a row. It is shown at once; the promise resolves with its id when the server has it. */
  async insert<E extends EntityName<S>>(entity: E, data: InsertOf<S, E>, options: WriteOptions = {}): Promise<string> {
    const operation = this.#inserted(entity, data);
    await this.#write("push", [operation], options);
    return operation.row_id;
  }

  async update<E extends EntityName<S>>(entity: E, id: string, data: UpdateOf<S, E>, options: WriteOptions = {}): Promise<void> {
    await this.#write(options.ifSeq === undefined ? "push" : "match", [{ kind: "update", entity, row_id: id, data: data as Record<string, unknown>, seq: null }], options);
  }

  async delete<E extends EntityName<S>>(entity: E, id: string, options: WriteOptions = {}): Promise<void> {
    await this.#write(options.ifSeq === undefined ? "push" : "match", [{ kind: "delete", entity, row_id: id, seq: null }], options);
  }

  /** Several writes that happen together or not at all. */
  async tx(work: (transaction: Transaction<S>) => void, options: WriteOptions = {}): Promise<void> {
    const operations: Operation[] = [];
    work({
      insert: (entity, data) => {
        const operation = this.#inserted(entity, data);
        operations.push(operation);
        return operation.row_id;
      },
      update: (entity, id, data) => { operations.push({ kind: "update", entity, row_id: id, data: data as Record<string, unknown>, seq: null }); },
      delete: (entity, id) => { operations.push({ kind: "delete", entity, row_id: id, seq: null }); },
    });
    if (operations.length) await this.#write("tx", operations, options);
  }

  #inserted(entity: string, data: object): Operation {
    const { id, ...rest } = data as { id?: string } & Record<string, unknown>;
    return { kind: "insert", entity, row_id: id ?? this.#newId(), data: rest, seq: null };
  }

  #write(mode: Entry["mode"], operations: Operation[], options: WriteOptions): Promise<void> {
    const done = this.outbox.write(mode, operations, options);
    if (this.#errors.size) done.catch(() => undefined); // the listeners of "error" hear of it
    return done;
  }

  // --- The rest -------------------------------------------------------------------------

  /** Join a room. `data` is what its other members see. */
  room(name: string, options: { data?: unknown } = {}): Room {
    const end = () => room.leave();
    const room: Room = new Room(this.#env, this.#connection, this.#requests, this.auth, name, options.data, () => this.#open.delete(end));
    this.#open.add(end);
    return room;
  }

  /** Join a shard. */
  shard<State = unknown, Input = unknown>(id: string, options: { sid?: string } = {}): Shard<State, Input> {
    const end = () => shard.close();
    const shard: Shard<State, Input> = new Shard(this.#env, this.auth, () => this.#connection.config(), id, options.sid, () => this.#open.delete(end));
    this.#open.add(end);
    return shard;
  }

  /** Edit a row as a document. Resolves with its first content. */
  async doc<E extends EntityName<S>, D extends LoroLike>(entity: E, id: string, options: { LoroDoc: new () => D }): Promise<LiveDocument<D>> {
    const { LiveDocument } = await import("./documents.js"); // loaded by those who need it
    const end = () => document.close();
    const document: LiveDocument<D> = new LiveDocument(this.#env, this.#connection, this.#requests, entity, id, new options.LoroDoc(), () => this.#open.delete(end));
    this.#open.add(end);
    await document.ready;
    return document;
  }

  readonly fn: Calls<S> = Object.assign(
    <F extends FunctionName<S>>(name: F, args?: ArgsOf<S, F>, options: CallOptions = {}): Promise<ResultOf<S, F>> =>
      this.#call("POST", `/api/fn/${encodeURIComponent(name)}`, args ?? {}, options),
    {
      stream: <F extends FunctionName<S>>(name: F, args?: ArgsOf<S, F>, options: CallOptions = {}): AsyncGenerator<unknown, ResultOf<S, F>> =>
        this.#streamFunction(name, args ?? {}, options) as AsyncGenerator<unknown, ResultOf<S, F>>,
    },
  );

  async *#streamFunction(name: string, args: object, options: CallOptions): AsyncGenerator<unknown, unknown> {
    await this.auth.ready;
    const response = await this.#requests.open(
      "POST", `/api/fn/${encodeURIComponent(name)}`, JSON.stringify(args),
      { "Content-Type": "application/json", Accept: "text/event-stream", ...options.headers }, options.signal, options.timeout_ms ?? STREAM_TIMEOUT_MS,
    );
    if (!response.ok || !response.body) throw errorOf(await response.json().catch(() => null), { status: response.status });
    let kind = "";
    for await (const data of eventsOf(response.body, () => {}, event => { kind = event; })) {
      if (kind === "error") throw errorOf(JSON.parse(data), { status: response.status, retryable: false });
      if (kind === "result") return JSON.parse(data);
      yield data;
    }
    throw new PylonError("NETWORK", `The function ${name} ended without a result`);
  }

  /** Call any route of the server, with this client's session, retries and errors. */
  async call<T = unknown>(method: string, path: string, body?: unknown, options: CallOptions = {}): Promise<T> {
    return this.#call(method, path, body, options);
  }

  /** End everything: listeners, sockets, timers. */
  close(): void {
    for (const end of [...this.#open]) end();
    this.#windows.close();
    this.outbox.close();
    this.#offline?.close();
    this.#connection.close();
    this.auth.close();
  }

  async #call<T>(method: string, path: string, body: unknown, options: CallOptions): Promise<T> {
    await this.auth.ready;
    return this.#requests.call<T>(method, path, body, options);
  }
}

/** Make a client. */
export function pylon<S extends AnySchema = UntypedSchema>(options: Options = {}): Pylon<S> {
  return new Pylon<S>(options);
}
