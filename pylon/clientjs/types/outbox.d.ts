/**
 * The outbox: writes on their way to the server, in order, each carried out once.
 *
 * A write has an `op_id`, so that the server knows a repetition. One request is in flight; it has at
 * most one operation of each row, so that a refused one cannot be passed by a later one of its row.
 * With a storage (the offline extension) writes outlive the page, wait for a connection, and a refused
 * one waits for the app's decision; without one a write that cannot be sent is refused.
 */
import type { Auth } from "./auth.js";
import { type Environment, Listeners } from "./environment.js";
import { PylonError } from "./errors.js";
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
    refusal: {
        code: string;
        message: string;
        hint?: string | undefined;
    } | null;
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
export declare class Outbox {
    #private;
    private readonly env;
    private readonly requests;
    private readonly auth;
    /** The set of operations has changed: rows have to be shown anew. */
    readonly onChange: Listeners<[ReadonlySet<string>]>;
    readonly onRefused: Listeners<[PylonError, Entry]>;
    constructor(env: Environment, requests: Requests, auth: Auth);
    /** The writes that wait for the server, the oldest first. */
    get pending(): readonly Entry[];
    /** The writes that the server refused. */
    get refused(): readonly Entry[];
    /** Forget a refused write. */
    drop(id: string): Promise<void>;
    /** Send a refused write again. */
    retry(id: string): Promise<void>;
    close(): void;
}
