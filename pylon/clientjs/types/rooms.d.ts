/**
 * Rooms: who is there, what they show of themselves, and messages between them.
 *
 * A room is joined over HTTP, again after each loss of the connection, since a member leaves with its
 * last socket. Without a socket the members are polled; messages of others then do not arrive.
 */
import type { Auth } from "./auth.js";
import type { Connection } from "./connection.js";
import { type Environment } from "./environment.js";
import { PylonError } from "./errors.js";
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
export declare class Room {
    #private;
    private readonly env;
    private readonly connection;
    private readonly requests;
    private readonly auth;
    readonly name: string;
    private readonly forget;
    constructor(env: Environment, connection: Connection, requests: Requests, auth: Auth, name: string, data: unknown, forget: () => void);
    get members(): readonly Member[];
    get snapshot(): RoomSnapshot;
    /** Call `listener` now and at each change of the members. */
    subscribe(listener: (snapshot: RoomSnapshot) => void): () => void;
    /** Call `listener` with each message on `topic`, and the id of its sender. */
    on(topic: string, listener: (data: unknown, from: string | null) => void): () => void;
    /** Show the other members `data`. */
    presence(data: unknown): Promise<void>;
    /** Send a message to all members, the sender included. */
    broadcast(topic: string, data: unknown): Promise<void>;
    leave(): Promise<void>;
}
