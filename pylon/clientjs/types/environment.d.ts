/**
 * The platform below the client: time, randomness, network, storage. Each member can be replaced by
 * the option `environment`, which is how the tests advance a clock and how other runtimes plug in
 * what they lack. The core needs no DOM.
 */
export interface SocketLike {
    readonly readyState: number;
    binaryType: string;
    onopen: ((event: never) => void) | null;
    onmessage: ((event: {
        data: unknown;
    }) => void) | null;
    onclose: ((event: {
        code: number;
        reason: string;
    }) => void) | null;
    onerror: ((event: never) => void) | null;
    send(data: string | Uint8Array): void;
    close(code?: number, reason?: string): void;
}
export type Timer = unknown;
export interface Environment {
    fetch(input: string, init?: RequestInit): Promise<Response>;
    /** Absent: the client falls back to event streams. */
    WebSocket: (new (url: string, protocols?: string[]) => SocketLike) | undefined;
    /** Milliseconds since 1970. */
    now(): number;
    setTimeout(work: () => void, delay_ms: number): Timer;
    clearTimeout(timer: Timer): void;
    /** From 0 up to 1. */
    random(): number;
    randomBytes(count: number): Uint8Array;
    /** Like localStorage; undefined where there is none. */
    storage: Pick<Storage, "getItem" | "setItem" | "removeItem"> | undefined;
    indexedDB: IDBFactory | undefined;
    /** Run `work` while no other tab runs something under this name. */
    lock<T>(name: string, work: () => Promise<T>): Promise<T>;
    /** Call `listener` at an event of the page; returns the function that ends this. */
    on(event: "online" | "offline" | "visible" | "storage", listener: (key?: string | null) => void): () => void;
    isVisible(): boolean;
}
/** The environment of browsers, Node, Deno, Bun and workers. */
export declare function defaultEnvironment(): Environment;
/** `count` random bytes as hex. */
export declare const randomHex: (env: Environment, count: number) => string;
/** Make ids of rows: 40 hex digits that sort by the time of their making. */
export declare function rowIds(env: Environment): () => string;
/** Wait; rejects when `signal` aborts. */
export declare function sleep(env: Environment, delay_ms: number, signal?: AbortSignal): Promise<void>;
/** A set of listeners. One that throws does not keep the others from their call. */
export declare class Listeners<Args extends unknown[]> {
    #private;
    get size(): number;
    add(listener: (...args: Args) => void): () => void;
    emit(...args: Args): void;
}
