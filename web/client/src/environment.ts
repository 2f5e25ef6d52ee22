/**
 * The platform below the client: time, randomness, network, storage. Each member can be replaced by
 * the option `environment`, which is how the tests advance a clock and how other runtimes plug in
 * what they lack. The core needs no DOM.
 */

export interface SocketLike {
  readonly readyState: number;
  binaryType: string;
  onopen: ((event: never) => void) | null;
  onmessage: ((event: { data: unknown }) => void) | null;
  onclose: ((event: { code: number; reason: string }) => void) | null;
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

interface PageLike {
  addEventListener?(name: string, listener: (event: { key?: string | null }) => void): void;
  removeEventListener?(name: string, listener: (event: { key?: string | null }) => void): void;
}

/** The environment of browsers, Node, Deno, Bun and workers. */
export function defaultEnvironment(): Environment {
  const page = globalThis as unknown as PageLike & { document?: PageLike & { visibilityState: string } };
  const listen = (target: PageLike | undefined, name: string, listener: (event: { key?: string | null }) => void) => {
    target?.addEventListener?.(name, listener);
    return () => target?.removeEventListener?.(name, listener);
  };
  return {
    fetch: (input, init) => fetch(input, init),
    WebSocket: globalThis.WebSocket as unknown as Environment["WebSocket"],
    now: () => Date.now(),
    setTimeout: (work, delay) => setTimeout(work, delay),
    clearTimeout: timer => clearTimeout(timer as number),
    random: () => Math.random(),
    randomBytes: count => crypto.getRandomValues(new Uint8Array(count)),
    storage: storageOf(),
    indexedDB: globalThis.indexedDB,
    lock: (name, work) => globalThis.navigator?.locks
      ? navigator.locks.request(name, work) as unknown as ReturnType<typeof work>
      : work(),
    on: (event, listener) => event === "visible"
      ? listen(page.document, "visibilitychange", () => { if (page.document?.visibilityState !== "hidden") listener(); })
      : listen(page, event, event_ => listener(event_.key)),
    isVisible: () => page.document?.visibilityState !== "hidden",
  };
}

function storageOf(): Environment["storage"] {
  try {
    return globalThis.localStorage ?? undefined;
  } catch {
    return undefined; // a page whose reader forbids storage
  }
}

const hex = (bytes: Uint8Array): string => Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");

/** `count` random bytes as hex. */
export const randomHex = (env: Environment, count: number): string => hex(env.randomBytes(count));

/** Make ids of rows: 40 hex digits that sort by the time of their making. */
export function rowIds(env: Environment): () => string {
  let last = 0n;
  return () => {
    const now = BigInt(Math.floor(env.now())) * 1_000_000n + BigInt(Math.floor(env.random() * 1e6));
    last = now > last ? now : last + 1n;
    return last.toString(16).padStart(32, "0") + randomHex(env, 4);
  };
}

/** Wait; rejects when `signal` aborts. */
export function sleep(env: Environment, delay_ms: number, signal?: AbortSignal): Promise<void> {
  return new Promise((resolve, reject) => {
    const abort = () => { env.clearTimeout(timer); reject(signal?.reason); };
    const timer = env.setTimeout(() => { signal?.removeEventListener("abort", abort); resolve(); }, delay_ms);
    signal?.addEventListener("abort", abort, { once: true });
  });
}

/** A set of listeners. One that throws does not keep the others from their call. */
export class Listeners<Args extends unknown[]> {
  readonly #all = new Set<(...args: Args) => void>();

  get size(): number { return this.#all.size; }

  add(listener: (...args: Args) => void): () => void {
    const own = (...args: Args) => listener(...args); // the same function twice is two listeners
    this.#all.add(own);
    return () => { this.#all.delete(own); };
  }

  emit(...args: Args): void {
    for (const listener of [...this.#all]) {
      try {
        listener(...args);
      } catch (error) {
        queueMicrotask(() => { throw error; });
      }
    }
  }
}
