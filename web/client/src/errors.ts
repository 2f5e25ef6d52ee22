/**
 * The one error of this client. Every refusal of the server and every failure to reach it is a
 * `PylonError`; `code` says which. The codes of the server are in docs/errors.md.
 */

/** The codes that the client itself gives. */
export type ClientErrorCode =
  | "NETWORK" | "TIMEOUT" | "ABORTED" | "CLOSED" | "QUEUE_FULL" | "NOT_SUPPORTED" | "BAD_ANSWER";

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

export class PylonError extends Error {
  override readonly name = "PylonError";
  readonly code: string;
  /** The HTTP status; 0 without an answer. */
  readonly status: number;
  readonly hint: string | undefined;
  readonly requestId: string | undefined;
  /** Whether the same call may succeed later. */
  readonly retryable: boolean;
  readonly retryAfter: number | undefined;
  readonly body: Record<string, unknown>;

  constructor(code: string, message: string, details: ErrorDetails = {}) {
    super(message);
    this.code = code;
    this.status = details.status ?? 0;
    this.hint = details.hint;
    this.requestId = details.requestId;
    this.retryable = details.retryable ?? isRetryable(this.status);
    this.retryAfter = details.retryAfter;
    this.body = details.body ?? {};
  }
}

/** Whether a request with this status may succeed later (0: the network). */
export const isRetryable = (status: number): boolean =>
  status === 0 || status === 408 || status === 425 || status === 429 || status >= 500;

/** The error of a JSON body `{"error": {"code", "message", "hint"}}`, or of a socket message. */
export function errorOf(body: unknown, details: ErrorDetails = {}): PylonError {
  const outer = (body ?? {}) as Record<string, unknown>;
  const inner = (typeof outer.error === "object" && outer.error ? outer.error : outer) as Record<string, unknown>;
  return new PylonError(
    String(inner.code ?? (details.status ? `HTTP_${details.status}` : "BAD_ANSWER")),
    String(inner.message ?? `The server answered ${details.status ?? "an error"}`),
    { ...details, hint: inner.hint as string | undefined, body: inner },
  );
}
