/**
 * Shards: simulations that tick on the server. A shard has a socket of its own, which sends the state
 * as a whole at first and then what has changed; inputs carry numbers, and each state says which
 * input it has. docs/shards.md has the wire.
 */
import type { Auth } from "./auth.js";
import type { ClientConfig } from "./connection.js";
import { type Environment } from "./environment.js";
import { PylonError } from "./errors.js";
export interface PendingInput<I> {
    readonly seq: number;
    readonly input: I;
    /** Milliseconds, of the environment's clock. */
    readonly at: number;
}
export interface ShardStatus {
    readonly state: "connecting" | "live" | "ended" | "error";
    readonly error: PylonError | null;
}
interface ShardEvents<S> {
    state: (state: S, tick: number) => void;
    status: (status: ShardStatus) => void;
    rejected: (seq: number, reason: string) => void;
}
export declare class Shard<S = unknown, I = unknown> {
    #private;
    private readonly env;
    private readonly auth;
    private readonly config;
    readonly id: string;
    private readonly sid;
    private readonly forget;
    /** The last state; null before the first. */
    state: S | null;
    tick: number;
    status: ShardStatus;
    /** Inputs that no state has acknowledged, the oldest first: what a prediction applies again. */
    readonly pending: PendingInput<I>[];
    constructor(env: Environment, auth: Auth, config: () => Promise<ClientConfig>, id: string, sid: string | undefined, forget: () => void);
    on<K extends keyof ShardEvents<S>>(event: K, listener: ShardEvents<S>[K]): () => void;
    /** Send an input. Returns its number; null without a connection: the input is not sent. */
    input(input: I): number | null;
    /** Connect anew, also after the end. */
    retry(): void;
    close(): void;
}
/** A state with a delta: objects are descended into, null removes, all else replaces. The old state stays as it is. */
export declare function patched(state: unknown, delta: unknown): unknown;
export {};
