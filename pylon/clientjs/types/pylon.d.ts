/**
 * The client of a Pylon server. `pylon({url})` makes one; docs/clients/javascript.md shows its use and
 * docs/clients/behaviour.md has the rules that it keeps.
 */
import { Auth, type Session, type SessionStore, type StoreName } from "./auth.js";
import { type ChangeStream, Connection, type ConnectionStatus, type Transport } from "./connection.js";
import type { Row } from "./conditions.js";
import type { LiveDocument, LoroLike } from "./documents.js";
import { type Environment } from "./environment.js";
import { PylonError } from "./errors.js";
import { Files } from "./files.js";
import { type Live, type LiveOptions, type RowSource } from "./live.js";
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
export type { CallOptions, ChangeStream, ConnectionStatus, Entry, Environment, Live, LiveDocument, LiveOptions, LoroLike, Operation, OutboxStorage, Room, Row, RowSource, Session, SessionStore, Shard, StoreName, Transport, WriteOptions, };
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
export declare class Pylon<S extends AnySchema = UntypedSchema> {
    #private;
    readonly auth: Auth;
    readonly files: Files;
    /** Writes on their way, and those that were refused. */
    readonly outbox: Outbox;
    readonly url: string;
    constructor(options?: Options);
    /** The connection now. */
    get status(): ConnectionStatus;
    on<K extends keyof Events>(event: K, listener: Events[K]): () => void;
    /** Connect now, also after a refusal. */
    retry(): void;
    /** Rows that stay up to date: "the newest 50 messages of this room". Starts with its first listener. */
    live<E extends EntityName<S>>(entity: E, options?: QueryOf<RowOf<S, E>>): Live<RowOf<S, E>>;
    /** One row that stays up to date; `rows` has it, or is empty. */
    row<E extends EntityName<S>>(entity: E, id: string): Live<RowOf<S, E>>;
    /** The rows of this moment. */
    query<E extends EntityName<S>>(entity: E, options?: QueryOf<RowOf<S, E>>, call?: CallOptions): Promise<RowOf<S, E>[]>;
    /** All rows, page by page. */
    pages<E extends EntityName<S>>(entity: E, options?: QueryOf<RowOf<S, E>>, call?: CallOptions): AsyncGenerator<RowOf<S, E>[]>;
    /** One row, or null. */
    get<E extends EntityName<S>>(entity: E, id: string, call?: CallOptions): Promise<RowOf<S, E> | null>;
    /** A new id, for a row that others refer to before it is there. */
    newId(): string;
    /** Insert a row. It is shown at once; the promise resolves with its id when the server has it. */
    insert<E extends EntityName<S>>(entity: E, data: InsertOf<S, E>, options?: WriteOptions): Promise<string>;
    update<E extends EntityName<S>>(entity: E, id: string, data: UpdateOf<S, E>, options?: WriteOptions): Promise<void>;
    delete<E extends EntityName<S>>(entity: E, id: string, options?: WriteOptions): Promise<void>;
    /** Several writes that happen together or not at all. */
    tx(work: (transaction: Transaction<S>) => void, options?: WriteOptions): Promise<void>;
    /** Join a room. `data` is what its other members see. */
    room(name: string, options?: {
        data?: unknown;
    }): Room;
    /** Join a shard. */
    shard<State = unknown, Input = unknown>(id: string, options?: {
        sid?: string;
    }): Shard<State, Input>;
    /** Edit a row as a document. Resolves with its first content. */
    doc<E extends EntityName<S>, D extends LoroLike>(entity: E, id: string, options: {
        LoroDoc: new () => D;
    }): Promise<LiveDocument<D>>;
    readonly fn: Calls<S>;
    /** Call any route of the server, with this client's session, retries and errors. */
    call<T = unknown>(method: string, path: string, body?: unknown, options?: CallOptions): Promise<T>;
    /** End everything: listeners, sockets, timers. */
    close(): void;
}
/** Make a client. */
export declare function pylon<S extends AnySchema = UntypedSchema>(options?: Options): Pylon<S>;
