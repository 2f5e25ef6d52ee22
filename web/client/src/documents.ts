/**
 * Documents: rows that several people edit at once, as Loro documents. The app brings the class
 * (`LoroDoc` of the package loro-crdt). Local edits are sent as one update; they wait while the server
 * cannot be reached. docs/realtime.md has the content of a document.
 */
import type { Connection } from "./connection.js";
import { type Environment, Listeners, type Timer } from "./environment.js";
import type { PylonError } from "./errors.js";
import type { Requests } from "./requests.js";

/** What the client needs of a document; `LoroDoc` has it. */
export interface LoroLike {
  import(bytes: Uint8Array): unknown;
  export(mode: { mode: "update"; from?: unknown } | { mode: "snapshot" }): Uint8Array;
  oplogVersion(): unknown;
  subscribeLocalUpdates(listener: (bytes: Uint8Array) => void): () => void;
}

export interface DocumentStatus {
  readonly state: "loading" | "live" | "stale" | "error";
  /** Whether local edits wait for the server. */
  readonly isPending: boolean;
  readonly error: PylonError | null;
}

const SEND_MS = 50;
const AGAIN_MS = 2_000;
const SNAPSHOT_FRAME = 0x10;
const UPDATE_FRAME = 0x11;

export class LiveDocument<D extends LoroLike> {
  status: DocumentStatus = { state: "loading", isPending: false, error: null };
  /** Resolves with the first content. */
  readonly ready: Promise<void>;
  readonly #listeners = new Listeners<[DocumentStatus]>();
  readonly #endings: (() => void)[];
  #timer: Timer = null;
  #sent: unknown; // the version that the server has
  #isDirty = false;
  #isSending = false;
  #isOpen = true;

  constructor(
    private readonly env: Environment, private readonly connection: Connection, private readonly requests: Requests,
    readonly entity: string, readonly id: string, readonly doc: D, private readonly forget: () => void,
  ) {
    this.#sent = doc.oplogVersion();
    let loaded: () => void = () => {};
    this.ready = new Promise(resolve => { loaded = resolve; });
    this.#endings = [
      doc.subscribeLocalUpdates(() => this.#edited()),
      connection.onBinary.add(frame => {
        const found = readFrame(frame);
        if (found?.entity !== entity || found.id !== id) return;
        const wasClean = !this.#isDirty && !this.#isSending;
        doc.import(found.payload);
        if (wasClean) this.#sent = doc.oplogVersion();
        this.#set({ state: "live", error: null });
        loaded();
      }),
      connection.onOpen.add(() => this.#subscribe()),
      connection.onStatus.add(({ state }) => { if (state !== "live" && this.status.state === "live") this.#set({ state: "stale" }); }),
      connection.hold(),
    ];
    this.#subscribe();
  }

  subscribe(listener: (status: DocumentStatus) => void): () => void {
    const end = this.#listeners.add(listener);
    listener(this.status);
    return end;
  }

  /** End the subscription. Edits that wait are sent before. */
  async close(): Promise<void> {
    if (!this.#isOpen) return;
    if (this.#isDirty) await this.#send().catch(() => undefined);
    this.#isOpen = false;
    this.forget();
    this.env.clearTimeout(this.#timer);
    this.connection.send({ type: "crdt-unsubscribe", entity: this.entity, rowId: this.id });
    for (const end of this.#endings) end();
  }

  #set(change: Partial<DocumentStatus>): void {
    this.status = { ...this.status, isPending: this.#isDirty || this.#isSending, ...change };
    this.#listeners.emit(this.status);
  }

  #subscribe(): void {
    this.connection.send({ type: "crdt-subscribe", entity: this.entity, rowId: this.id });
    if (this.#isDirty) this.#soon(0);
  }

  #edited(): void {
    this.#isDirty = true;
    this.#set({});
    this.#soon(SEND_MS);
  }

  #soon(delay_ms: number): void {
    this.env.clearTimeout(this.#timer);
    this.#timer = this.env.setTimeout(() => void this.#send(), delay_ms);
  }

  async #send(): Promise<void> {
    if (!this.#isOpen || !this.#isDirty || this.#isSending) return;
    this.#isSending = true;
    this.#isDirty = false;
    const version = this.doc.oplogVersion();
    try {
      await this.#push(this.doc.export({ mode: "update", from: this.#sent })).catch(error => {
        if ((error as PylonError).code !== "CRDT_HISTORY_MISSING") throw error;
        return this.#push(this.doc.export({ mode: "snapshot" }));
      });
      this.#sent = version;
    } catch (reason) {
      const error = reason as PylonError;
      if (error.retryable) {
        this.#isDirty = true;
        this.#isSending = false;
        this.#set({ error });
        this.#soon(AGAIN_MS * (1 + this.env.random()));
        return;
      }
      this.#set({ state: "error", error });
    } finally {
      this.#isSending = false;
    }
    if (this.#isDirty) this.#soon(0);
    this.#set({});
  }

  #push(bytes: Uint8Array): Promise<unknown> {
    const update = Array.from(bytes, byte => byte.toString(16).padStart(2, "0")).join("");
    return this.requests.call("POST", `/api/crdt/${this.entity}/${encodeURIComponent(this.id)}`, { update });
  }
}

/** u8 type, u16 length, entity, u16 length, row id, payload. Null: not a frame of a document. */
export function readFrame(frame: Uint8Array): { entity: string; id: string; payload: Uint8Array } | null {
  const view = new DataView(frame.buffer, frame.byteOffset, frame.byteLength);
  if (frame[0] !== SNAPSHOT_FRAME && frame[0] !== UPDATE_FRAME) return null;
  try {
    const entityLength = view.getUint16(1);
    const idAt = 3 + entityLength;
    const idLength = view.getUint16(idAt);
    const payloadAt = idAt + 2 + idLength;
    if (payloadAt > frame.length) return null;
    const text = new TextDecoder();
    return {
      entity: text.decode(frame.subarray(3, idAt)), id: text.decode(frame.subarray(idAt + 2, payloadAt)), payload: frame.subarray(payloadAt),
    };
  } catch {
    return null; // cut off
  }
}
