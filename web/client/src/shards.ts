/**
 * Shards: simulations that tick on the server. A shard has a socket of its own, which sends the state
 * as a whole at first and then what has changed; inputs carry numbers, and each state says which
 * input it has. docs/shards.md has the wire.
 */
import type { Auth } from "./auth.js";
import type { ClientConfig } from "./connection.js";
import { type Environment, Listeners, type SocketLike, type Timer } from "./environment.js";
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

const FIRST_DELAY_MS = 250;
const LONGEST_DELAY_MS = 8_000;
const STEADY_MS = 5_000;
const FINAL = new Map([[1000, "ended"], [1008, "error"], [4400, "error"], [4404, "error"]] as const);

export class Shard<S = unknown, I = unknown> {
  /** The last state; null before the first. */
  state: S | null = null;
  tick = 0;
  status: ShardStatus = { state: "connecting", error: null };
  /** Inputs that no state has acknowledged, the oldest first: what a prediction applies again. */
  readonly pending: PendingInput<I>[] = [];
  readonly #states = new Listeners<[S, number]>();
  readonly #statuses = new Listeners<[ShardStatus]>();
  readonly #rejections = new Listeners<[number, string]>();
  #socket: SocketLike | null = null;
  #seat: string | null = null;
  #seq = 0;
  #attempts = 0;
  #timer: Timer = null;
  #isOpen = true;
  readonly #end: () => void;

  constructor(
    private readonly env: Environment, private readonly auth: Auth, private readonly config: () => Promise<ClientConfig>,
    readonly id: string, private readonly sid: string | undefined, private readonly forget: () => void,
  ) {
    this.#end = auth.onChange((_, isSameUser) => { if (!isSameUser) this.retry(); });
    void this.#connect();
  }

  on<K extends keyof ShardEvents<S>>(event: K, listener: ShardEvents<S>[K]): () => void {
    const listeners = { state: this.#states, status: this.#statuses, rejected: this.#rejections }[event] as unknown as Listeners<unknown[]>;
    return listeners.add(listener as (...args: unknown[]) => void);
  }

  /** Send an input. Returns its number; null without a connection: the input is not sent. */
  input(input: I): number | null {
    if (this.status.state !== "live" || !this.#socket) return null;
    const seq = ++this.#seq;
    this.pending.push({ seq, input, at: this.env.now() });
    this.#socket.send(JSON.stringify({ input, client_seq: seq }));
    return seq;
  }

  /** Connect anew, also after the end. */
  retry(): void {
    this.#drop();
    this.#attempts = 0;
    if (this.#isOpen) void this.#connect();
  }

  close(): void {
    this.#isOpen = false;
    this.forget();
    this.#end();
    this.#drop();
    this.#set("ended", null);
  }

  #drop(): void {
    this.env.clearTimeout(this.#timer);
    const socket = this.#socket;
    this.#socket = null;
    if (!socket) return;
    socket.onopen = socket.onmessage = socket.onclose = null;
    socket.close();
  }

  #set(state: ShardStatus["state"], error: PylonError | null): void {
    this.status = { state, error };
    this.#statuses.emit(this.status);
  }

  async #connect(): Promise<void> {
    try {
      await this.auth.ready;
      const { urls: { shards } } = await this.config();
      if (!this.#isOpen || this.#socket) return;
      const { WebSocket } = this.env;
      if (!shards || !WebSocket) throw new PylonError("NOT_SUPPORTED", "There is no server of shards, or no WebSocket", { retryable: false });
      const sid = this.sid ?? this.auth.userId;
      if (!sid) throw new PylonError("AUTH_REQUIRED", "Sign in before you join a shard", { status: 401 });
      const token = this.auth.token();
      const offers = token ? [`bearer.${encodeURIComponent(token)}`] : [];
      if (this.#seat) offers.push(`seat.${this.#seat}`); // back to the place of a connection that was lost
      const socket = new WebSocket(`${shards}?${new URLSearchParams({ shard: this.id, sid, ack: "1", delta: "1" })}`, offers);
      this.#socket = socket;
      socket.binaryType = "arraybuffer";
      this.pending.length = 0; // an acknowledgement counts the inputs of one connection
      socket.onopen = () => {
        this.#timer = this.env.setTimeout(() => { this.#attempts = 0; }, STEADY_MS);
        this.#set("live", null);
      };
      socket.onmessage = ({ data }) => this.#receive(data);
      socket.onclose = ({ code, reason }) => {
        this.#drop();
        const error = new PylonError("NETWORK", `The shard closed the connection: ${code}${reason ? ` ${reason}` : ""}`, { body: { close: code } });
        const final = FINAL.get(code as 1000);
        if (final) this.#set(final, final === "error" ? error : null);
        else this.#later(error);
      };
    } catch (reason) {
      const error = reason instanceof PylonError ? reason : new PylonError("NETWORK", String(reason));
      if (error.retryable) this.#later(error);
      else this.#set("error", error); // a sign-in connects anew
    }
  }

  #later(error: PylonError): void {
    if (!this.#isOpen) return;
    this.#set("connecting", error);
    const wait = this.env.random() * Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempts++);
    this.#timer = this.env.setTimeout(() => void this.#connect(), wait);
  }

  #receive(data: unknown): void {
    if (typeof data === "string") {
      const message = JSON.parse(data) as { type?: string; token?: string; client_seq?: number; reason?: string };
      if (message.type === "seat") this.#seat = message.token ?? null;
      if (message.type === "input-rejected") {
        this.#confirm(message.client_seq ?? 0, true);
        this.#rejections.emit(message.client_seq ?? 0, message.reason ?? "");
      }
      return;
    }
    const bytes = data as ArrayBuffer;
    const tick = Number(new DataView(bytes).getBigUint64(0));
    const frame = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 8))) as { snapshot?: S; delta?: unknown; ack?: { client_seq: number | null } | null };
    this.state = "delta" in frame ? patched(this.state, frame.delta) as S : frame.snapshot as S;
    this.tick = tick;
    if (frame.ack?.client_seq != null) this.#confirm(frame.ack.client_seq, false);
    this.#states.emit(this.state, tick);
  }

  #confirm(seq: number, isOne: boolean): void {
    const left = this.pending.filter(each => isOne ? each.seq !== seq : each.seq > seq);
    this.pending.splice(0, this.pending.length, ...left);
  }
}

/** A state with a delta: objects are descended into, null removes, all else replaces. The old state stays as it is. */
export function patched(state: unknown, delta: unknown): unknown {
  if (!isObject(delta) || !isObject(state)) return delta;
  const out = { ...state };
  for (const [key, value] of Object.entries(delta)) {
    if (value === null) delete out[key];
    else out[key] = patched(out[key], value);
  }
  return out;
}

const isObject = (value: unknown): value is Record<string, unknown> =>
  typeof value === "object" && value !== null && !Array.isArray(value);
