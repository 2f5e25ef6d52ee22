/**
 * The connection: one WebSocket to the server, or what stands in for it.
 *
 * It opens while somebody holds it. A WebSocket that twice fails to open while HTTP answers is
 * replaced by an event stream, and that by polling; after five minutes the WebSocket is tried
 * again. Every loss is followed by a new attempt after a random time of up to 0.5 s, 1 s, ... 30 s.
 * docs/clients/behaviour.md has the rules.
 */
import type { Auth } from "./auth.js";
import { type Environment, Listeners } from "./environment.js";
import { PylonError } from "./errors.js";
import type { Requests } from "./requests.js";
export type Transport = "ws" | "sse" | "poll";
/** idle: nobody needs the server. failed: the server has refused this client; `retry` tries again. */
export type ConnectionState = "idle" | "connecting" | "live" | "offline" | "failed";
export interface ConnectionStatus {
    readonly state: ConnectionState;
    /** Null until one is open. */
    readonly transport: Transport | null;
    /** Why the last connection ended. */
    readonly error: PylonError | null;
}
export type Message = Record<string, unknown> & {
    readonly type?: string;
};
/** The stream of changes that a replica wants; without one a socket has subscriptions only. */
export interface ChangeStream {
    readonly entities: readonly string[];
    /** The cursor; null before the first pull. */
    cursor(): number | null;
    /** Get what is missing, before a connection opens. */
    prepare(): Promise<void>;
    /** The log no longer has the cursor. */
    forget(): void;
}
export interface ClientConfig {
    readonly urls: {
        readonly ws: string | null;
        readonly sse: string | null;
        readonly shards: string | null;
    };
}
export declare class Connection {
    #private;
    private readonly env;
    private readonly requests;
    private readonly auth;
    readonly onStatus: Listeners<[ConnectionStatus]>;
    /** A transport is open: subscribe again. */
    readonly onOpen: Listeners<[Transport]>;
    readonly onMessage: Listeners<[Message]>;
    readonly onBinary: Listeners<[Uint8Array<ArrayBufferLike>]>;
    /** Without a socket: rows of this entity may have changed (null: any). */
    readonly onHint: Listeners<[string | null]>;
    stream: ChangeStream | null;
    /** The entities that an event stream has to tell of, besides those of `stream`. */
    watched: () => Iterable<string>;
    constructor(env: Environment, requests: Requests, auth: Auth, transports: readonly Transport[]);
    get status(): ConnectionStatus;
    /** Whether messages can be sent. */
    get isSocket(): boolean;
    /** Keep the connection open until the returned function is called. */
    hold(): () => void;
    /** Send a message over the socket. False: there is none now. */
    send(message: Message): boolean;
    /** Try at once, also after a refusal. */
    retry(): void;
    /** The addresses of the server. */
    config(): Promise<ClientConfig>;
    /** Without a socket: look for changes now. */
    hint(): void;
    close(): void;
}
/** The `data` of each event of an event stream. */
export declare function eventsOf(body: ReadableStream<Uint8Array>, onBytes?: () => void, named?: (name: string) => void): AsyncGenerator<string>;
