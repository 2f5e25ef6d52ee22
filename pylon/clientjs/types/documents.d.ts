/**
 * Documents: rows that several people edit at once, as Loro documents. The app brings the class
 * (`LoroDoc` of the package loro-crdt). Local edits are sent as one update; they wait while the server
 * cannot be reached. docs/realtime.md has the content of a document.
 */
import type { Connection } from "./connection.js";
import { type Environment } from "./environment.js";
import type { PylonError } from "./errors.js";
import type { Requests } from "./requests.js";
/** What the client needs of a document; `LoroDoc` has it. */
export interface LoroLike {
    import(bytes: Uint8Array): unknown;
    export(mode: {
        mode: "update";
        from?: unknown;
    } | {
        mode: "snapshot";
    }): Uint8Array;
    oplogVersion(): unknown;
    subscribeLocalUpdates(listener: (bytes: Uint8Array) => void): () => void;
}
export interface DocumentStatus {
    readonly state: "loading" | "live" | "stale" | "error";
    /** Whether local edits wait for the server. */
    readonly isPending: boolean;
    readonly error: PylonError | null;
}
export declare class LiveDocument<D extends LoroLike> {
    #private;
    private readonly env;
    private readonly connection;
    private readonly requests;
    readonly entity: string;
    readonly id: string;
    readonly doc: D;
    private readonly forget;
    status: DocumentStatus;
    /** Resolves with the first content. */
    readonly ready: Promise<void>;
    constructor(env: Environment, connection: Connection, requests: Requests, entity: string, id: string, doc: D, forget: () => void);
    subscribe(listener: (status: DocumentStatus) => void): () => void;
    /** End the subscription. Edits that wait are sent before. */
    close(): Promise<void>;
}
/** u8 type, u16 length, entity, u16 length, row id, payload. Null: not a frame of a document. */
export declare function readFrame(frame: Uint8Array): {
    entity: string;
    id: string;
    payload: Uint8Array;
} | null;
