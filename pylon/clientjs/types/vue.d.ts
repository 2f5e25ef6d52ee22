/**
 * Composables for Vue 3: shallow refs that follow the client, and end with the scope that made them.
 * Arguments may be refs or getters; a change makes the window anew.
 */
import { type MaybeRefOrGetter, type ShallowRef } from "vue";
import type { AnySchema, ConnectionStatus, EntityName, Live, Pylon, PylonError, QueryOf, Room, RoomSnapshot, RowOf, Session, Shard, ShardStatus, Snapshot } from "./pylon.js";
type AnyPylon = Pylon<any>;
/** The rows of a window, and the window itself. */
export declare function useLive<S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: MaybeRefOrGetter<E>, options?: MaybeRefOrGetter<QueryOf<RowOf<S, E>>>): {
    readonly snapshot: ShallowRef<Snapshot<RowOf<S, E>>>;
    readonly window: ShallowRef<Live<RowOf<S, E>>>;
};
/** One row; undefined until it is there, and null if there is none. */
export declare function useRow<S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: E, id: MaybeRefOrGetter<string>): ShallowRef<RowOf<S, E> | null | undefined>;
/** One answer, asked again when the arguments change or by `refetch`. */
export declare function useQuery<S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: MaybeRefOrGetter<E>, options?: MaybeRefOrGetter<QueryOf<RowOf<S, E>>>): {
    readonly rows: ShallowRef<readonly RowOf<S, E>[] | undefined>;
    readonly error: ShallowRef<PylonError | null>;
    refetch(): void;
};
/** Work with its state. */
export declare function useMutation<A extends unknown[], R>(work: (...args: A) => Promise<R>): {
    run(...args: A): Promise<R>;
    readonly isPending: ShallowRef<boolean>;
    readonly error: ShallowRef<PylonError | null>;
};
export declare function useRoom(app: AnyPylon, name: string, data?: unknown): {
    readonly snapshot: ShallowRef<RoomSnapshot>;
    readonly room: Room;
};
export declare function useShard<S = unknown, I = unknown>(app: AnyPylon, id: string): {
    readonly state: ShallowRef<S | null>;
    readonly status: ShallowRef<ShardStatus>;
    readonly shard: Shard<S, I>;
};
export declare function useSession(app: AnyPylon): ShallowRef<Session | null>;
export declare function useStatus(app: AnyPylon): ShallowRef<ConnectionStatus>;
export {};
