/**
 * Requests: one HTTP call with a timeout, retries, an Idempotency-Key and one kind of error.
 *
 * A call is sent again after a failure of the network and after 408, 425, 429 and 5xx, twice by
 * default: after a random part of 0.5 s, 1 s, up to 8 s, or after Retry-After. A write has an
 * Idempotency-Key, so the server carries it out once.
 */
import { type Environment, randomHex, sleep } from "./environment.js";
import { errorOf, PylonError } from "./errors.js";

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

const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 8_000;
const LONGEST_RETRY_AFTER_S = 60;

export class Requests {
  constructor(
    readonly env: Environment,
    readonly url: string,
    private readonly credentials: () => Credentials,
    private readonly timeout_ms: number,
    private readonly retries: number,
  ) {}

  /** The parsed body of the answer. */
  async call<T = unknown>(method: string, path: string, body?: unknown, options: CallOptions = {}): Promise<T> {
    return (await this.send(method, path, body, options)).body as T;
  }

  /** Send a request until it is answered. Bytes (`Blob`, `Uint8Array`) go as they are, all else as JSON. */
  async send(method: string, path: string, body?: unknown, options: CallOptions = {}): Promise<Answer> {
    const isRaw = body instanceof Uint8Array || (typeof Blob !== "undefined" && body instanceof Blob);
    const headers: Record<string, string> = { Accept: "application/json", ...options.headers };
    if (body !== undefined && !isRaw) headers["Content-Type"] = "application/json";
    if (method !== "GET" && method !== "HEAD") headers["Idempotency-Key"] = options.key ?? randomHex(this.env, 16);
    const retries = options.retries ?? this.retries;
    const { userId } = this.credentials();
    for (let attempt = 0; ; attempt++) {
      try {
        return await this.attempt(method, path, isRaw ? (body as BodyInit) : body === undefined ? undefined : JSON.stringify(body), headers, options);
      } catch (error) {
        if (!(error instanceof PylonError) || !error.retryable || attempt >= retries) throw error;
        const wait = Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** attempt) * this.env.random();
        const asked = error.retryAfter ?? 0;
        if (asked > LONGEST_RETRY_AFTER_S) throw error;
        await sleep(this.env, Math.max(wait, asked * 1000), options.signal).catch(reason => { throw aborted(reason); });
        // What one user has begun is not sent as another.
        if (userId !== this.credentials().userId) throw error;
      }
    }
  }

  /** One attempt, answered with the open response: for streams and downloads. */
  async open(method: string, path: string, body: BodyInit | undefined, headers: Record<string, string>, signal: AbortSignal | undefined, timeout_ms: number): Promise<Response> {
    const { env } = this;
    const stop = new AbortController();
    let isLate = false;
    const timer = env.setTimeout(() => { isLate = true; stop.abort(); }, timeout_ms);
    const abort = () => stop.abort();
    if (signal?.aborted) stop.abort();
    signal?.addEventListener("abort", abort, { once: true });
    const credentials = this.credentials();
    const token = credentials.token();
    try {
      return await env.fetch(/^https?:/.test(path) ? path : this.url + path, {
        method, signal: stop.signal, cache: "no-store",
        headers: token && !headers.Authorization ? { ...headers, Authorization: `Bearer ${token}` } : headers,
        credentials: credentials.usesCookies ? "include" : "omit",
        ...(body === undefined ? {} : { body }),
      });
    } catch (error) {
      if (signal?.aborted) throw aborted(signal.reason);
      throw isLate
        ? new PylonError("TIMEOUT", `${method} ${path}: no answer within ${timeout_ms / 1000} s`)
        : new PylonError("NETWORK", `${method} ${path}: ${error instanceof Error ? error.message : String(error)}`);
    } finally {
      env.clearTimeout(timer);
      // A stream goes on after its head: the caller's signal still ends it.
    }
  }

  private async attempt(method: string, path: string, body: BodyInit | undefined, headers: Record<string, string>, options: CallOptions): Promise<Answer> {
    const timeout_ms = options.timeout_ms ?? this.timeout_ms;
    const stop = new AbortController();
    const abort = () => stop.abort(options.signal?.reason);
    if (options.signal?.aborted) abort();
    options.signal?.addEventListener("abort", abort, { once: true });
    let isLate = false;
    const timer = this.env.setTimeout(() => { isLate = true; stop.abort(); }, timeout_ms);
    try {
      const response = await this.open(method, path, body, headers, stop.signal, timeout_ms);
      const text = await response.text();
      return answerOf(response, text);
    } catch (error) {
      if (options.signal?.aborted) throw aborted(options.signal.reason);
      if (isLate) throw new PylonError("TIMEOUT", `${method} ${path}: no answer within ${timeout_ms / 1000} s`);
      if (error instanceof PylonError) throw error;
      throw new PylonError("NETWORK", `${method} ${path}: ${error instanceof Error ? error.message : String(error)}`);
    } finally {
      this.env.clearTimeout(timer);
      options.signal?.removeEventListener("abort", abort);
    }
  }
}

function answerOf(response: Response, text: string): Answer {
  const { status, headers } = response;
  let body: unknown = null;
  try {
    body = text === "" ? null : JSON.parse(text);
  } catch {
    if (response.ok) throw new PylonError("BAD_ANSWER", `The answer is no JSON: ${text.slice(0, 80)}`, { status, retryable: false });
  }
  if (response.ok) return { body, headers, status };
  const retryAfter = Number(headers.get("retry-after"));
  throw errorOf(body, {
    status, requestId: headers.get("x-request-id") ?? undefined,
    retryAfter: Number.isFinite(retryAfter) && retryAfter > 0 ? retryAfter : undefined,
  });
}

function aborted(reason: unknown): PylonError {
  return new PylonError("ABORTED", reason instanceof Error ? reason.message : "The call was aborted", { retryable: false });
}
