/**
 * Requests: one HTTP call with a timeout, retries, an Idempotency-Key and one kind of error.
 *
 * A call is sent again after a failure of the network and after 408, 425, 429 and 5xx, twice by
 * default: after a random part of 0.5 s, 1 s, up to 8 s, or after Retry-After. A write has an
 * Idempotency-Key, so the server carries it out once.
 */
import { type Environment } from "./environment.js";
export interface CallOptions {
    signal?: AbortSignal | undefined;
    /** Of one attempt. */
    timeout_ms?: number;
    /** How often a failed call is sent again. */
    retries?: number;
    headers?: Record<string, string>;
    /** The Idempotency-Key; by default a random one for every method but GET. */
    key?: string;
}
export interface Answer {
    readonly body: unknown;
    readonly headers: Headers;
    readonly status: number;
}
export interface Credentials {
    /** The token of the Authorization header. */
    token(): string | null;
    readonly userId: string | null;
    /** Whether the browser's cookies go along. */
    readonly usesCookies: boolean;
}
export declare class Requests {
    readonly env: Environment;
    readonly url: string;
    private readonly credentials;
    private readonly timeout_ms;
    private readonly retries;
    constructor(env: Environment, url: string, credentials: () => Credentials, timeout_ms: number, retries: number);
    /** The parsed body of the answer. */
    call<T = unknown>(method: string, path: string, body?: unknown, options?: CallOptions): Promise<T>;
    /** Send a request until it is answered. Bytes (`Blob`, `Uint8Array`) go as they are, all else as JSON. */
    send(method: string, path: string, body?: unknown, options?: CallOptions): Promise<Answer>;
    /** One attempt, answered with the open response: for streams and downloads. */
    open(method: string, path: string, body: BodyInit | undefined, headers: Record<string, string>, signal: AbortSignal | undefined, timeout_ms: number): Promise<Response>;
    private attempt;
}
