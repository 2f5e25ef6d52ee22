/**
 * Stores for Svelte 4 and newer. A window (`app.live(…)`) is a store itself: `$messages.rows`. These
 * functions make stores of the rest; a room or a shard is joined while its store has a subscriber.
 */
import { type Readable } from "svelte/store";
import type { ConnectionStatus, Pylon, PylonError, Room, RoomSnapshot, Session, Shard, ShardStatus } from "./pylon.js";
type AnyPylon = Pylon<any>;
export declare function session(app: AnyPylon): Readable<Session | null>;
export declare function status(app: AnyPylon): Readable<ConnectionStatus>;
export declare function room(app: AnyPylon, name: string, data?: unknown): Readable<RoomSnapshot & {
    readonly room: Room | null;
}>;
export interface ShardStore<S, I> {
    readonly state: S | null;
    readonly tick: number;
    readonly status: ShardStatus;
    readonly shard: Shard<S, I> | null;
}
export declare function shard<S = unknown, I = unknown>(app: AnyPylon, id: string): Readable<ShardStore<S, I>>;
/** Work with its state, as a store. */
export declare function mutation<A extends unknown[], R>(work: (...args: A) => Promise<R>): Readable<{
    isPending: boolean;
    error: PylonError | null;
}> & {
    run(...args: A): Promise<R>;
};
export {};
