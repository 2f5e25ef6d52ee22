/**
 * The connection: one WebSocket to the server, or what stands in for it.
 *
 * It opens while somebody holds it. A WebSocket that twice fails to open while HTTP answers is
 * replaced by an event stream, and that by polling; after five minutes the WebSocket is tried
 * again. Every loss is followed by a new attempt after a random time of up to 0.5 s, 1 s, ... 30 s.
 * docs/clients/behaviour.md has the rules.
 */
import type { Auth } from "./auth.js";
import { type Environment, Listeners, type SocketLike, type Timer } from "./environment.js";
import { errorOf, PylonError } from "./errors.js";
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
export type Message = Record<string, unknown> & { readonly type?: string };

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
  readonly urls: { readonly ws: string | null; readonly sse: string | null; readonly shards: string | null };
}

const OPEN_MS = 8_000;
const FAILURES_TO_OPEN = 2;
const WS_AGAIN_MS = 300_000;
const FIRST_DELAY_MS = 500;
const LONGEST_DELAY_MS = 30_000;
const STEADY_MS = 5_000;
const PING_MS = 25_000;
const PING_SOON_MS = 5_000;
const UNANSWERED = 2;
const SILENT_MS = 30_000;
const STREAM_SILENT_MS = 75_000;
const POLL_FIRST_MS = 1_000;
const POLL_LONGEST_MS = 15_000;
const REFUSED = new Set([1008, 4404]);
const SESSION_ENDED = 4401;

export class Connection {
  readonly onStatus = new Listeners<[ConnectionStatus]>();
  /** A transport is open: subscribe again. */
  readonly onOpen = new Listeners<[Transport]>();
  readonly onMessage = new Listeners<[Message]>();
  readonly onBinary = new Listeners<[Uint8Array]>();
  /** Without a socket: rows of this entity may have changed (null: any). */
  readonly onHint = new Listeners<[string | null]>();
  stream: ChangeStream | null = null;
  /** The entities that an event stream has to tell of, besides those of `stream`. */
  watched: () => Iterable<string> = () => [];

  #status: ConnectionStatus = { state: "idle", transport: null, error: null };
  #config: ClientConfig | null = null;
  #socket: SocketLike | null = null;
  #abort: AbortController | null = null;
  #holders = 0;
  #epoch = 0; // each attempt has a number; what belongs to an earlier one is ignored
  #attempts = 0;
  #failedOpens = 0;
  #level: number; // in #transports
  #timer: Timer = null;
  #pulse: Timer = null;
  #unanswered = 0;
  #lastMessage = 0;
  #lastPulse = 0;
  #wsAgainAt = 0;
  #poll_ms = POLL_FIRST_MS;
  #streamed = "";
  readonly #transports: readonly Transport[];
  readonly #endings: (() => void)[];

  constructor(
    private readonly env: Environment, private readonly requests: Requests, private readonly auth: Auth,
    transports: readonly Transport[],
  ) {
    this.#transports = env.WebSocket ? transports : transports.filter(each => each !== "ws");
    this.#level = 0;
    this.#endings = [
      env.on("online", () => this.#hurry()),
      env.on("visible", () => { if (env.now() - this.#lastMessage > SILENT_MS) this.#hurry(); }),
      auth.onChange((session, isSameUser) => {
        if (!this.#holders) return;
        if (isSameUser && this.send({ type: "auth", token: session?.token ?? null })) return;
        this.#attempts = 0;
        this.#restart();
      }),
    ];
  }

  get status(): ConnectionStatus { return this.#status; }
  /** Whether messages can be sent. */
  get isSocket(): boolean { return this.#status.state === "live" && this.#status.transport === "ws"; }

  /** Keep the connection open until the returned function is called. */
  hold(): () => void {
    this.#holders += 1;
    if (this.#holders === 1) this.#restart();
    let isHeld = true;
    return () => {
      if (!isHeld) return;
      isHeld = false;
      this.#holders -= 1;
      if (!this.#holders) this.#stop("idle", null);
    };
  }

  /** Send a message over the socket. False: there is none now. */
  send(message: Message): boolean {
    if (!this.isSocket || !this.#socket) return false;
    this.#socket.send(JSON.stringify(message));
    return true;
  }

  /** Try at once, also after a refusal. */
  retry(): void { if (this.#holders) { this.#attempts = 0; this.#restart(); } }

  /** The addresses of the server. */
  async config(): Promise<ClientConfig> {
    this.#config ??= await this.requests.call<ClientConfig>("GET", "/api/client-config");
    return this.#config;
  }

  /** Without a socket: look for changes now. */
  hint(): void {
    this.#poll_ms = POLL_FIRST_MS;
    const { state, transport } = this.#status;
    if (state === "live" && transport === "sse" && this.#streamed !== this.#streamEntities()) this.#restart();
    else if (state === "live" && transport === "poll") this.#pollSoon(this.#epoch);
  }

  close(): void {
    this.#holders = 0;
    this.#stop("idle", null);
    for (const end of this.#endings) end();
  }

  #set(state: ConnectionState, transport: Transport | null, error: PylonError | null): void {
    this.#status = { state, transport, error };
    this.onStatus.emit(this.#status);
  }

  #stop(state: ConnectionState, error: PylonError | null): void {
    this.#drop();
    if (this.#status.state !== state || this.#status.error !== error) this.#set(state, null, error);
  }

  /** End what runs, quietly. */
  #drop(): void {
    this.#epoch += 1;
    this.env.clearTimeout(this.#timer);
    this.env.clearTimeout(this.#pulse);
    this.#abort?.abort();
    this.#abort = null;
    const socket = this.#socket;
    this.#socket = null;
    if (socket) {
      socket.onopen = socket.onmessage = socket.onclose = null;
      socket.close();
    }
  }

  #restart(): void {
    this.#drop();
    if (!this.#holders) return;
    if (this.#status.state !== "offline") this.#set("connecting", null, this.#status.error);
    void this.#open(this.#epoch);
  }

  /** The page is back: do not wait for timers. */
  #hurry(): void {
    if (!this.#holders) return;
    const { state } = this.#status;
    if (state === "live" && this.#socket) this.#ping(this.#epoch, PING_SOON_MS);
    else if (state !== "failed") { this.#attempts = 0; this.#restart(); }
  }

  async #open(epoch: number): Promise<void> {
    try {
      await this.auth.ready;
      if (this.#attempts || !this.#config) {
        // Also the proof that HTTP works: a socket that does not open then is a blocked one.
        this.#config = await this.requests.call<ClientConfig>("GET", "/api/client-config", undefined, { retries: 0, timeout_ms: OPEN_MS });
      }
      if (epoch !== this.#epoch) return;
      await this.stream?.prepare();
    } catch (error) {
      if (epoch === this.#epoch) this.#later(error instanceof PylonError ? error : new PylonError("NETWORK", String(error)), "offline");
      return;
    }
    if (epoch !== this.#epoch) return;
    const transport = this.#transports[this.#level] ?? "poll";
    if (transport === "ws" && this.#config.urls.ws) this.#openSocket(epoch);
    else if (transport !== "poll" && this.#config.urls.sse) void this.#openStream(epoch);
    else this.#openPoll(epoch);
  }

  #opened(transport: Transport): void {
    this.#lastMessage = this.#lastPulse = this.env.now();
    this.#unanswered = this.#failedOpens = 0;
    const epoch = this.#epoch;
    this.#timer = this.env.setTimeout(() => { if (epoch === this.#epoch) this.#attempts = 0; }, STEADY_MS);
    if (transport === "ws") this.#wsAgainAt = 0;
    else if (this.#transports[0] === "ws") this.#wsAgainAt ||= this.env.now() + WS_AGAIN_MS;
    this.#set("live", transport, null);
    this.onOpen.emit(transport);
    this.#beat(epoch);
  }

  // --- WebSocket --------------------------------------------------------------------------

  #openSocket(epoch: number): void {
    const { WebSocket } = this.env;
    const query = new URLSearchParams();
    const cursor = this.stream?.cursor() ?? null;
    if (this.stream && cursor !== null) {
      query.set("entities", this.stream.entities.join(","));
      query.set("since", String(cursor));
    } else query.set("changes", "0");
    const base = this.auth.usesCookies ? `${this.requests.url.replace(/^http/, "ws")}/api/sync/ws` : this.#config?.urls.ws;
    const token = this.auth.token();
    let socket: SocketLike;
    try {
      socket = new (WebSocket as NonNullable<typeof WebSocket>)(`${base}?${query}`, token ? [`bearer.${encodeURIComponent(token)}`] : []);
    } catch (error) {
      this.#failed(new PylonError("NETWORK", String(error)));
      return;
    }
    this.#socket = socket;
    socket.binaryType = "arraybuffer";
    this.#timer = this.env.setTimeout(() => {
      if (epoch === this.#epoch) this.#failed(new PylonError("TIMEOUT", "The WebSocket did not open"));
    }, OPEN_MS);
    socket.onopen = () => {
      this.env.clearTimeout(this.#timer);
      this.#opened("ws");
    };
    socket.onmessage = ({ data }) => {
      this.#lastMessage = this.env.now();
      this.#unanswered = 0;
      if (typeof data !== "string") {
        this.onBinary.emit(new Uint8Array(data as ArrayBuffer));
        return;
      }
      this.#receive(JSON.parse(data) as Message);
    };
    socket.onerror = () => {}; // a close follows
    socket.onclose = ({ code, reason }) => {
      const wasOpen = this.#status.state === "live";
      const error = new PylonError("NETWORK", `The connection was closed: ${code}${reason ? ` ${reason}` : ""}`, { body: { close: code } });
      if (REFUSED.has(code)) this.#stop("failed", error);
      else if (code === SESSION_ENDED) void this.#renew(epoch, error);
      else if (wasOpen) this.#later(error, "connecting");
      else this.#failed(error);
    };
  }

  #receive(message: Message): void {
    if (message.type === "resync") this.stream?.forget();
    else if (message.type === "error" && message.for === "auth") this.#restart(); // the new token is unknown here
    this.onMessage.emit(message);
  }

  /** A transport did not open, although HTTP works. */
  #failed(error: PylonError): void {
    this.#failedOpens += 1;
    if (this.#failedOpens >= FAILURES_TO_OPEN && this.#level < this.#transports.length - 1) {
      this.#failedOpens = 0;
      this.#level += 1;
      this.#attempts = 0;
    }
    this.#later(error, "connecting");
  }

  async #renew(epoch: number, error: PylonError): Promise<void> {
    const before = this.auth.token();
    await this.auth.refresh().catch(() => undefined);
    // A new token has opened a connection already, or else the next attempt does.
    if (epoch === this.#epoch && this.#holders) {
      if (this.auth.token() === before) this.#later(error, "connecting");
      else this.#restart();
    }
  }

  /** Wait, and try again. */
  #later(error: PylonError, state: "connecting" | "offline"): void {
    this.#drop();
    if (!this.#holders) return;
    const wait = this.env.random() * Math.min(LONGEST_DELAY_MS, FIRST_DELAY_MS * 2 ** this.#attempts);
    this.#attempts += 1;
    this.#set(state, null, error);
    const epoch = this.#epoch;
    this.#timer = this.env.setTimeout(() => { if (epoch === this.#epoch) void this.#open(epoch); }, wait);
  }

  /** Every 25 s: a ping, and a look whether the machine has slept. */
  #beat(epoch: number): void {
    this.#pulse = this.env.setTimeout(() => {
      if (epoch !== this.#epoch) return;
      const now = this.env.now();
      const slept = now - this.#lastPulse > 2 * PING_MS;
      this.#lastPulse = now;
      if (this.#wsAgainAt && now >= this.#wsAgainAt && this.#status.transport !== "ws") {
        this.#wsAgainAt = 0;
        this.#level = 0;
        this.#failedOpens = FAILURES_TO_OPEN - 1; // one attempt
        this.#restart();
      } else if (slept) this.#restart();
      else if (this.#socket) this.#ping(epoch, PING_MS);
      else if (this.#status.transport === "sse" && now - this.#lastMessage > STREAM_SILENT_MS) this.#later(new PylonError("TIMEOUT", "The event stream is silent"), "connecting");
      else this.#beat(epoch);
    }, PING_MS);
  }

  #ping(epoch: number, wait_ms: number): void {
    if (this.#unanswered >= UNANSWERED) {
      this.#later(new PylonError("TIMEOUT", "The server did not answer a ping"), "connecting");
      return;
    }
    if (this.env.isVisible()) {
      this.#unanswered += 1;
      this.send({ type: "ping", id: this.#unanswered });
    }
    if (wait_ms === PING_MS) {
      this.#beat(epoch);
      return;
    }
    const asked = this.env.now();
    this.env.setTimeout(() => {
      if (epoch === this.#epoch && this.#lastMessage < asked) this.#later(new PylonError("TIMEOUT", "The server did not answer a ping"), "connecting");
    }, wait_ms);
  }

  // --- Event stream -----------------------------------------------------------------------

  #streamEntities(): string {
    return [...new Set([...(this.stream?.entities ?? []), ...this.watched()])].sort().join(",");
  }

  async #openStream(epoch: number): Promise<void> {
    const abort = this.#abort = new AbortController();
    const query = new URLSearchParams();
    this.#streamed = this.#streamEntities();
    if (this.#streamed) query.set("entities", this.#streamed);
    const cursor = this.stream?.cursor();
    if (cursor != null) query.set("since", String(cursor));
    try {
      const response = await this.requests.open("GET", `${this.#config?.urls.sse}?${query}`, undefined, { Accept: "text/event-stream" }, abort.signal, OPEN_MS);
      if (epoch !== this.#epoch) return;
      if (!response.ok || !response.body) throw errorOf(await response.json().catch(() => null), { status: response.status });
      this.#opened("sse");
      for await (const data of eventsOf(response.body, () => { this.#lastMessage = this.env.now(); })) {
        if (epoch !== this.#epoch) return;
        const message = JSON.parse(data) as Message;
        this.#receive(message);
        if (typeof message.entity === "string") this.onHint.emit(message.entity);
      }
      throw new PylonError("NETWORK", "The event stream ended");
    } catch (reason) {
      if (epoch !== this.#epoch) return;
      const error = reason instanceof PylonError ? reason : new PylonError("NETWORK", String(reason));
      if (error.code === "RESYNC_REQUIRED") this.stream?.forget();
      if (error.status === 401) void this.#renew(epoch, error);
      else if (this.#status.state === "live" || error.code === "RESYNC_REQUIRED") this.#later(error, "connecting");
      else this.#failed(error);
    }
  }

  // --- Polling ----------------------------------------------------------------------------

  #openPoll(epoch: number): void {
    this.#poll_ms = POLL_FIRST_MS;
    this.#opened("poll");
    this.#pollSoon(epoch);
  }

  #pollSoon(epoch: number): void {
    this.env.clearTimeout(this.#timer);
    this.#timer = this.env.setTimeout(async () => {
      if (epoch !== this.#epoch) return;
      this.#attempts = 0;
      try {
        await this.stream?.prepare();
      } catch (error) {
        if (epoch === this.#epoch) this.#later(error as PylonError, "offline");
        return;
      }
      if (epoch !== this.#epoch) return;
      this.#lastMessage = this.env.now();
      this.#poll_ms = Math.min(this.#poll_ms * 1.5, POLL_LONGEST_MS);
      this.onHint.emit(null);
      this.#pollSoon(epoch);
    }, this.#poll_ms);
  }
}

/** The `data` of each event of an event stream. */
export async function* eventsOf(body: ReadableStream<Uint8Array>, onBytes: () => void = () => {}, named?: (name: string) => void): AsyncGenerator<string> {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let text = "";
  let data: string[] = [];
  let name = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      onBytes();
      text += decoder.decode(value, { stream: true });
      const lines = text.split(/\r\n|\n|\r/);
      text = lines.pop() ?? "";
      for (const line of lines) {
        if (line === "") {
          if (data.length) {
            named?.(name);
            yield data.join("\n");
          }
          data = [];
          name = "";
        } else if (line.startsWith("data:")) data.push(line.slice(line[5] === " " ? 6 : 5));
        else if (line.startsWith("event:")) name = line.slice(6).trim();
      }
    }
  } finally {
    await reader.cancel().catch(() => undefined);
  }
}
