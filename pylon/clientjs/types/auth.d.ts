/**
 * Auth: who the user is, where the token lies, and how it is renewed.
 *
 * A store keeps the session: memory, localStorage (the default in browsers), the browser's cookie,
 * or one of the app. A token is renewed one hour before its end, by one tab for all. Listeners hear
 * each change of the user; the connection and the caches follow it.
 */
import { type Environment } from "./environment.js";
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
export declare class Auth implements Credentials {
    #private;
    private readonly env;
    private readonly requests;
    private readonly key;
    /** Resolves when the stored session is loaded; every call waits for it. */
    readonly ready: Promise<void>;
    readonly usesCookies: boolean;
    constructor(env: Environment, requests: () => Requests, key: string, store: StoreName | SessionStore, token: string | undefined);
    /** The session, or null. */
    get session(): Session | null;
    /** The id of the signed-in user, or null. */
    get userId(): string | null;
    token(): string | null;
    /** Call `listener` now and at each change of the session. Returns the function that ends this. */
    subscribe(listener: (session: Session | null) => void): () => void;
    /** The session there is; without one, a new guest's. */
    guest(): Promise<Session>;
    /** Sign in with a password. Throws `TOTP_REQUIRED` if a code must follow: see `totp`. */
    signIn(account: {
        email: string;
        password: string;
        totp?: string;
    }): Promise<Session>;
    /** Make an account. Without a session, if the address must be verified first: then null. */
    register(account: {
        email: string;
        password: string;
        displayName?: string;
    }): Promise<Session | null>;
    /** Turn the guest into a user with an address and a password; what the guest made stays theirs. */
    upgrade(account: {
        email: string;
        password: string;
        displayName?: string;
    }): Promise<Session>;
    /** The code of an authenticator app, after `TOTP_REQUIRED`: `challenge` is in that error's body. */
    totp(challenge: string, code: string): Promise<Session>;
    /** Mail a code; `verifyCode` signs in by it. */
    sendCode(email: string): Promise<unknown>;
    verifyCode(email: string, code: string): Promise<Session>;
    /** Mail a link that signs in; the page at `callback` calls `verifyLink` with its token. */
    sendLink(email: string, callback?: string): Promise<unknown>;
    verifyLink(token: string): Promise<Session>;
    /** The address that a browser opens to sign in with a provider. */
    providerUrl(provider: string, options: {
        callback: string;
        errorCallback?: string;
    }): string;
    /** Take a session that came in another way. */
    use(session: Session): Promise<void>;
    /** Who the server says that the caller is. */
    me(): Promise<User>;
    /** Renew the token. False: the session has ended, and the user is signed out. */
    refresh(): Promise<boolean>;
    /** End the session, here and on the server. */
    signOut(): Promise<void>;
}
