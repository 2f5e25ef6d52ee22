/**
 * Rooms: who is there, what they show of themselves, and messages between them.
 *
 * A room is joined over HTTP, again after each loss of the connection, since a member leaves with its
 * last socket. Without a socket the members are polled; messages of others then do not arrive.
 */
import type { Auth } from "./auth.js";
import type { Connection, Message } from "./connection.js";
import { type Environment, Listeners, type Timer } from "./environment.js";
import { errorOf, PylonError } from "./errors.js";
import type { Requests } from "./requests.js";

export interface Member {
  readonly user_id: string;
  readonly data: unknown;
  readonly joined_at?: string;
}

export interface RoomSnapshot {
  readonly members: readonly Member[];
  readonly state: "joining" | "joined" | "left" | "error";
  readonly error: PylonError | null;
}

const POLL_MS = 5_000;
const AGAIN_MS = 2_000;

export class Room {
  readonly #listeners = new Listeners<[RoomSnapshot]>();
  readonly #topics = new Listeners<[string, unknown, string | null]>();
  #snapshot: RoomSnapshot = { members: [], state: "joining", error: null };
  #data: unknown;
  #endings: (() => void)[];
  #timer: Timer = null;
  #isOpen = true;

  constructor(
    private readonly env: Environment, private readonly connection: Connection, private readonly requests: Requests,
    private readonly auth: Auth, readonly name: string, data: unknown, private readonly forget: () => void,
  ) {
    this.#data = data;
    this.#endings = [
      connection.onOpen.add(() => void this.#join()),
      connection.onMessage.add(message => { if (message.room === name) this.#receive(message); }),
      connection.hold(),
    ];
    if (connection.status.state === "live") void this.#join();
  }

  get members(): readonly Member[] { return this.#snapshot.members; }
  get snapshot(): RoomSnapshot { return this.#snapshot; }

  /** Call `listener` now and at each change of the members. */
  subscribe(listener: (snapshot: RoomSnapshot) => void): () => void {
    const end = this.#listeners.add(listener);
    listener(this.#snapshot);
    return end;
  }

  /** Call `listener` with each message on `topic`, and the id of its sender. */
  on(topic: string, listener: (data: unknown, from: string | null) => void): () => void {
    return this.#topics.add((name, data, from) => { if (name === topic) listener(data, from); });
  }

  /** Show the other members `data`. */
  async presence(data: unknown): Promise<void> {
    this.#data = data;
    const answer = await this.requests.call<{ updated: boolean }>("POST", "/api/rooms/presence", { room: this.name, data });
    if (!answer.updated && this.#isOpen) await this.#join();
  }

  /** Send a message to all members, the sender included. */
  async broadcast(topic: string, data: unknown): Promise<void> {
    const answer = await this.requests.call<{ broadcasted: boolean; reason?: string }>("POST", "/api/rooms/broadcast", { room: this.name, topic, data });
    if (!answer.broadcasted) throw new PylonError("NOT_IN_ROOM", `Not a member of ${this.name} (${answer.reason})`, { retryable: true });
  }

  async leave(): Promise<void> {
    if (!this.#isOpen) return;
    this.#isOpen = false;
    this.forget();
    this.env.clearTimeout(this.#timer);
    this.connection.send({ type: "room-unsubscribe", room: this.name });
    for (const end of this.#endings) end();
    this.#set({ members: [], state: "left", error: null });
    await this.requests.call("POST", "/api/rooms/leave", { room: this.name }).catch(() => undefined);
  }

  #set(snapshot: RoomSnapshot): void {
    this.#snapshot = snapshot;
    this.#listeners.emit(snapshot);
  }

  async #join(): Promise<void> {
    this.env.clearTimeout(this.#timer);
    if (!this.auth.token() && !this.auth.usesCookies) {
      this.#set({ members: [], state: "error", error: new PylonError("AUTH_REQUIRED", "Sign in before you join a room", { status: 401 }) });
      return; // a sign-in opens the connection anew
    }
    try {
      await this.requests.call("POST", "/api/rooms/join", { room: this.name, ...(this.#data === undefined ? {} : { data: this.#data }) });
      if (!this.#isOpen) return;
      if (!this.connection.send({ type: "room-subscribe", room: this.name })) await this.#poll();
    } catch (reason) {
      this.#fail(reason instanceof PylonError ? reason : new PylonError("NETWORK", String(reason)));
    }
  }

  async #poll(): Promise<void> {
    if (!this.#isOpen || this.connection.isSocket || this.connection.status.state !== "live") return;
    const { members } = await this.requests.call<{ members: Member[] }>("GET", `/api/rooms/${encodeURIComponent(this.name)}`);
    this.#set({ members, state: "joined", error: null });
    if (!members.some(each => each.user_id === this.auth.userId)) this.#again(AGAIN_MS);
    else this.#timer = this.env.setTimeout(() => { this.#poll().catch(error => this.#fail(error as PylonError)); }, POLL_MS);
  }

  #again(delay_ms: number): void {
    if (this.#isOpen) this.#timer = this.env.setTimeout(() => { if (this.connection.status.state === "live") void this.#join(); }, delay_ms);
  }

  #fail(error: PylonError): void {
    if (!this.#isOpen) return;
    this.#set({ members: [], state: "error", error });
    if (error.retryable) this.#again(AGAIN_MS * (1 + this.env.random()));
  }

  #receive(message: Message): void {
    const { members } = this.#snapshot;
    if (message.type === "error") {
      const error = errorOf(message);
      this.#fail(error);
      if (error.code === "NOT_IN_ROOM") this.#again(AGAIN_MS * this.env.random());
    } else if (message.type === "room-snapshot") {
      this.#set({ members: message.members as Member[], state: "joined", error: null });
    } else if (message.type === "room-update") {
      const { user_id } = message.member as { user_id: string };
      const others = members.filter(each => each.user_id !== user_id);
      const known = members.find(each => each.user_id === user_id);
      if (message.action === "broadcast") {
        const { topic, payload } = message.data as { topic: string; payload: unknown };
        this.#topics.emit(topic, payload, user_id);
      } else if (message.action === "leave") this.#set({ ...this.#snapshot, members: others });
      else {
        const member = { ...known, user_id, data: message.data ?? null };
        this.#set({ ...this.#snapshot, members: known ? members.map(each => each === known ? member : each) : [...members, member] });
      }
    } else if (message.type === "topic") {
      this.#topics.emit(String(message.topic), message.data, message.from as string);
    }
  }
}
