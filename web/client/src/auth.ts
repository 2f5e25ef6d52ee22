/**
 * Auth: who the user is, where the token lies, and how it is renewed.
 *
 * A store keeps the session: memory, localStorage (the default in browsers), the browser's cookie,
 * or one of the app. A token is renewed one hour before its end, by one tab for all. Listeners hear
 * each change of the user; the connection and the caches follow it.
 */
import { type Environment, Listeners, type Timer } from "./environment.js";
import { PylonError } from "./errors.js";
import type { Credentials, Requests } from "./requests.js";

export interface Session {
  /** Null with the store "cookie": scripts cannot read that token. */
  readonly token: string | null;
  readonly user_id: string;
  /** Seconds since 1970. */
  readonly expires_at?: number | null;
  readonly guest?: boolean;
}

/** A store of the app, for example of a phone's keychain. */
export interface SessionStore {
  load(): Session | null | Promise<Session | null>;
  save(session: Session | null): void | Promise<void>;
}

export interface User {
  readonly user_id: string | null;
  readonly tenant_id: string | null;
  readonly is_admin: boolean;
  readonly roles: string[];
  readonly [member: string]: unknown;
}

export type StoreName = "local" | "memory" | "cookie";

const RENEW_BEFORE_MS = 3_600_000;
const LONGEST_TIMER_MS = 2_000_000_000;
const AGAIN_MS = 60_000;

export class Auth implements Credentials {
  /** Resolves when the stored session is loaded; every call waits for it. */
  readonly ready: Promise<void>;
  readonly usesCookies: boolean;
  readonly #listeners = new Listeners<[Session | null, boolean]>();
  readonly #store: SessionStore;
  readonly #stopListening: () => void;
  #session: Session | null = null;
  #timer: Timer = null;
  #renewal: Promise<boolean> | null = null;

  constructor(
    private readonly env: Environment, private readonly requests: () => Requests,
    private readonly key: string, store: StoreName | SessionStore, token: string | undefined,
  ) {
    this.usesCookies = store === "cookie";
    this.#store = typeof store === "object" ? store
      : store === "local" && env.storage && token === undefined ? storageStore(env.storage, key)
      : { load: () => this.#session, save: () => {} };
    this.#stopListening = env.on("storage", changed => {
      if (changed === key) void Promise.resolve(this.#store.load()).then(session => this.#take(session));
    });
    if (token !== undefined) this.#session = { token, user_id: "" };
    this.ready = this.#start();
  }

  /** The session, or null. */
  get session(): Session | null { return this.#session; }

  /** The id of the signed-in user, or null. */
  get userId(): string | null { return this.#session?.user_id || null; }

  token(): string | null { return this.#session?.token ?? null; }

  /** Call `listener` now and at each change of the session. Returns the function that ends this. */
  subscribe(listener: (session: Session | null) => void): () => void {
    const end = this.#listeners.add(session => listener(session));
    listener(this.#session);
    return end;
  }

  /** @internal `isSameUser`: the token alone is new. */
  onChange(listener: (session: Session | null, isSameUser: boolean) => void): () => void {
    return this.#listeners.add(listener);
  }

  /** The session there is; without one, a new guest's. */
  async guest(): Promise<Session> {
    await this.ready;
    if (this.#session) {
      const me = await this.me();
      if (me.user_id !== null && (this.#session.user_id === "" || me.user_id === this.#session.user_id)) {
        if (this.#session.user_id === "") await this.#take({ ...this.#session, user_id: me.user_id });
        return this.#session as Session;
      }
    }
    return this.#signIn("/api/auth/guest", {});
  }

  /** Sign in with a password. Throws `TOTP_REQUIRED` if a code must follow: see `totp`. */
  signIn(account: { email: string; password: string; totp?: string }): Promise<Session> {
    return this.#signIn("/api/auth/password/login", account);
  }

  /** Make an account. Without a session, if the address must be verified first: then null. */
  async register(account: { email: string; password: string; displayName?: string }): Promise<Session | null> {
    const answer = await this.#post<Partial<Session>>("/api/auth/password/register", account);
    return answer.token ? this.#keep(answer) : null;
  }

  /** Turn the guest into a user with an address and a password; what the guest made stays theirs. */
  async upgrade(account: { email: string; password: string; displayName?: string }): Promise<Session> {
    return this.#signIn("/api/auth/upgrade", account);
  }

  /** The code of an authenticator app, after `TOTP_REQUIRED`: `challenge` is in that error's body. */
  totp(challenge: string, code: string): Promise<Session> {
    return this.#signIn("/api/auth/totp/challenge", { challenge, code });
  }

  /** Mail a code; `verifyCode` signs in by it. */
  sendCode(email: string): Promise<unknown> { return this.#post("/api/auth/magic/send", { email }); }

  verifyCode(email: string, code: string): Promise<Session> {
    return this.#signIn("/api/auth/magic/verify", { email, code });
  }

  /** Mail a link that signs in; the page at `callback` calls `verifyLink` with its token. */
  sendLink(email: string, callback?: string): Promise<unknown> {
    return this.#post("/api/auth/magic-link/send", callback === undefined ? { email } : { email, callback });
  }

  verifyLink(token: string): Promise<Session> {
    return this.#signIn("/api/auth/magic-link/verify", { token });
  }

  /** The address that a browser opens to sign in with a provider. */
  providerUrl(provider: string, options: { callback: string; errorCallback?: string }): string {
    const query = new URLSearchParams({ redirect: "1", callback: options.callback });
    if (options.errorCallback) query.set("error_callback", options.errorCallback);
    return `${this.requests().url}/api/auth/login/${encodeURIComponent(provider)}?${query}`;
  }

  /** Take a session that came in another way. */
  async use(session: Session): Promise<void> { await this.#take(session, true); }

  /** Who the server says that the caller is. */
  me(): Promise<User> { return this.requests().call<User>("GET", "/api/auth/me"); }

  /** Renew the token. False: the session has ended, and the user is signed out. */
  refresh(): Promise<boolean> {
    this.#renewal ??= this.#refresh().finally(() => { this.#renewal = null; });
    return this.#renewal;
  }

  /** End the session, here and on the server. */
  async signOut(): Promise<void> {
    const had = this.#session;
    const ended = had && this.requests().call("DELETE", "/api/auth/session", undefined, {
      retries: 0, headers: had.token ? { Authorization: `Bearer ${had.token}` } : {},
    }).catch(() => undefined);
    await this.#take(null, true);
    await ended; // a server that cannot be reached keeps the session until its end
  }

  /** @internal */
  close(): void {
    this.#stopListening();
    this.env.clearTimeout(this.#timer);
  }

  async #start(): Promise<void> {
    const stored = this.#session ?? await this.#store.load();
    if (stored) this.#set(stored);
    else if (this.usesCookies) {
      const me = await this.me().catch(() => null);
      if (me?.user_id) this.#set({ token: null, user_id: me.user_id });
    }
  }

  async #refresh(): Promise<boolean> {
    const before = this.#session;
    if (!before) return false;
    return this.env.lock(this.key, async () => {
      const stored = await this.#store.load();
      if (stored && stored.token !== before.token) { // another tab was faster
        await this.#take(stored);
        return true;
      }
      try {
        const answer = await this.requests().call<Session>("POST", "/api/auth/refresh", undefined, { retries: 1 });
        await this.#take({ ...before, ...answer, token: this.usesCookies ? null : answer.token }, true);
        return true;
      } catch (error) {
        if (!(error instanceof PylonError) || error.retryable) throw error;
        await this.#take(null, true);
        return false;
      }
    });
  }

  async #signIn(path: string, body: unknown): Promise<Session> {
    return this.#keep(await this.#post<Partial<Session>>(path, body));
  }

  async #post<T>(path: string, body: unknown): Promise<T> {
    await this.ready;
    return this.requests().call<T>("POST", path, body, { retries: 0 });
  }

  async #keep(answer: Partial<Session>): Promise<Session> {
    const session: Session = {
      token: this.usesCookies ? null : answer.token ?? null, user_id: String(answer.user_id),
      ...(answer.expires_at ? { expires_at: answer.expires_at } : {}), ...(answer.guest ? { guest: true } : {}),
    };
    await this.#take(session, true);
    return session;
  }

  async #take(session: Session | null, saves = false): Promise<void> {
    const isSameUser = session?.user_id === this.#session?.user_id;
    const isSame = isSameUser && session?.token === this.#session?.token;
    if (saves) await this.#store.save(session);
    if (isSame) return;
    this.#set(session);
    this.#listeners.emit(session, isSameUser);
  }

  #set(session: Session | null): void {
    this.#session = session;
    this.env.clearTimeout(this.#timer);
    if (!session?.expires_at) return;
    const left_ms = session.expires_at * 1000 - this.env.now();
    const wait_ms = Math.max(left_ms > RENEW_BEFORE_MS ? left_ms - RENEW_BEFORE_MS : left_ms / 2, 1_000);
    this.#timer = this.env.setTimeout(() => {
      if (wait_ms > LONGEST_TIMER_MS) this.#set(session);
      else this.refresh().catch(() => { this.#timer = this.env.setTimeout(() => this.#set(this.#session), AGAIN_MS); });
    }, Math.min(wait_ms, LONGEST_TIMER_MS));
    (this.#timer as { unref?(): void } | null)?.unref?.(); // Node may end before
  }
}

function storageStore(storage: NonNullable<Environment["storage"]>, key: string): SessionStore {
  return {
    load: () => {
      try {
        return JSON.parse(storage.getItem(key) ?? "null") as Session | null;
      } catch {
        return null;
      }
    },
    save: session => session ? storage.setItem(key, JSON.stringify(session)) : storage.removeItem(key),
  };
}
