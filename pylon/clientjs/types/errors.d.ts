/**
 * The one error of this client. Every refusal of the server and every failure to reach it is a
 * `PylonError`; `code` says which. The codes of the server are in docs/errors.md.
 */
/** The codes that the client itself gives. */
export type ClientErrorCode = "NETWORK" | "TIMEOUT" | "ABORTED" | "CLOSED" | "QUEUE_FULL" | "NOT_SUPPORTED" | "BAD_ANSWER";
export interface ErrorDetails {
    readonly status?: number;
    readonly hint?: string | undefined;
    readonly requestId?: string | undefined;
    readonly retryable?: boolean;
    /** Seconds that the server asks to wait. */
    readonly retryAfter?: number | undefined;
    /** All members of the server's error. */
    readonly body?: Record<string, unknown>;
}
export declare class PylonError extends Error {
    readonly name = "PylonError";
    readonly code: string;
    /** The HTTP status; 0 without an answer. */
    readonly status: number;
    readonly hint: string | undefined;
    readonly requestId: string | undefined;
    /** Whether the same call may succeed later. */
    readonly retryable: boolean;
    readonly retryAfter: number | undefined;
    readonly body: Record<string, unknown>;
    constructor(code: string, message: string, details?: ErrorDetails);
}
/** Whether a request with this status may succeed later (0: the network). */
export declare const isRetryable: (status: number) => boolean;
/** The error of a JSON body `{"error": {"code", "message", "hint"}}`, or of a socket message. */
export declare function errorOf(body: unknown, details?: ErrorDetails): PylonError;
