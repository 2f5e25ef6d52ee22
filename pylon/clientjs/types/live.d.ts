/**
 * Live windows: the rows of a filter, an order and a limit, kept up to date.
 *
 * Equal windows share one subscription. A window starts with its first listener and ends a second
 * after its last. Over a WebSocket the server sends what changes; over an event stream or by polling
 * the window is read again when its entity may have changed. Pending writes lie over the rows.
 */
import { type Order, type Row, type Where } from "./conditions.js";
import type { Connection, Message } from "./connection.js";
import { type Environment } from "./environment.js";
import { PylonError } from "./errors.js";
import type { Outbox } from "./outbox.js";
import { type WindowShape } from "./overlay.js";
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
/** The body of a query, as the server takes it. */
export declare function filterOf({ where, order, limit, after, before }: LiveOptions): Record<string, unknown>;
/** What an app holds of a window. */
export declare class Live<T = Row> implements AsyncIterable<readonly T[]> {
    #private;
    private readonly window;
    constructor(window: () => SharedWindow, limit: number | undefined);
    /** The rows now; none before the first listener. */
    get rows(): readonly T[];
    get state(): LiveState;
    get error(): PylonError | null;
    /** The state now. The same object until something changes. */
    get snapshot(): Snapshot<T>;
    /** Call `listener` now and at each change. Returns the function that ends this. */
    subscribe(listener: (snapshot: Snapshot<T>) => void): () => void;
    /** Resolves with the rows as soon as the server has sent them. */
    ready(): Promise<readonly T[]>;
    /** Widen the window by up to `count` rows. Resolves with whether there may be still more. */
    more(count?: number): Promise<boolean>;
    /** Subscribe again after an error. */
    retry(): void;
    /** End all listeners of this object. */
    close(): void;
    /** The rows at each change; ends never by itself, and throws the window's error. */
    [Symbol.asyncIterator](): AsyncGenerator<readonly T[]>;
}
/** One subscription, for all holders of equal windows. */
export declare class SharedWindow {
    #private;
    private readonly services;
    readonly subId: string;
    readonly entity: string;
    readonly shape: WindowShape;
    private readonly forget;
    limit: number;
    constructor(services: LiveServices, subId: string, entity: string, shape: WindowShape, forget: () => void);
    get isOpen(): boolean;
    get isLocal(): boolean;
    get snapshot(): Snapshot<Row>;
    listen(listener: () => void): () => void;
    /** Ask for the rows. */
    start(): void;
    more(count: number): Promise<void>;
    receive(message: Message): void;
    /** Tell the listeners, once for all that happens in this turn. */
    show(): void;
    close(): void;
}
/** All windows of a client. */
export declare class LiveWindows {
    #private;
    private readonly services;
    constructor(services: LiveServices);
    open<T>(entity: string, options: LiveOptions): Live<T>;
    close(): void;
}
