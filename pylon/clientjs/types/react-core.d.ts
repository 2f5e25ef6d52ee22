/**
 * The hooks of React and Preact, over what both have: made by `hooks` from the library's functions.
 *
 * Each hook subscribes with `useSyncExternalStore`; a window ends a second after its last reader, so
 * a component that is mounted twice at once costs one subscription. On the server of a page the hooks
 * give the state before the first answer.
 */
import type { AnySchema, ArgsOf, ConnectionStatus, EntityName, FunctionName, Live, Pylon, PylonError, QueryOf, ResultOf, Room, RoomSnapshot, RowOf, Session, Shard, ShardStatus, Snapshot } from "./pylon.js";
/** What the hooks need of the library. */
export interface Library {
    useSyncExternalStore<T>(subscribe: (listener: () => void) => () => void, get: () => T, getOnServer?: () => T): T;
    useMemo<T>(make: () => T, inputs: readonly unknown[]): T;
    useState<T>(first: T): [T, (next: T) => void];
    useEffect(effect: () => (() => void) | undefined, inputs: readonly unknown[]): void;
    useCallback<F extends (...args: never[]) => unknown>(work: F, inputs: readonly unknown[]): F;
}
export interface LiveResult<T> extends Snapshot<T> {
    readonly window: Live<T>;
}
export interface QueryResult<T> {
    readonly rows: readonly T[] | undefined;
    readonly error: PylonError | null;
    readonly refetch: () => void;
}
export interface Mutation<A extends unknown[], R> {
    readonly run: (...args: A) => Promise<R>;
    readonly isPending: boolean;
    readonly error: PylonError | null;
}
export interface RoomResult extends RoomSnapshot {
    readonly room: Room | null;
}
export interface ShardResult<S, I> {
    readonly state: S | null;
    readonly tick: number;
    readonly status: ShardStatus;
    readonly shard: Shard<S, I> | null;
}
type AnyPylon = Pylon<any>;
export declare function hooks({ useSyncExternalStore, useMemo, useState, useEffect, useCallback }: Library): {
    useLive: <S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: E, options?: QueryOf<RowOf<S, E>> & {
        suspend?: boolean;
    }) => LiveResult<RowOf<S, E>>;
    useRow: <S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: E, id: string) => RowOf<S, E> | null | undefined;
    useQuery: <S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: E, options?: QueryOf<RowOf<S, E>>) => QueryResult<RowOf<S, E>>;
    useMutation: <A extends unknown[], R>(work: (...args: A) => Promise<R>) => Mutation<A, R>;
    useFunction: <S extends AnySchema, F extends FunctionName<S>>(app: Pylon<S>, name: F) => Mutation<[args?: ArgsOf<S, F>], ResultOf<S, F>>;
    useRoom: (app: AnyPylon, name: string, data?: unknown) => RoomResult;
    useShard: <S = unknown, I = unknown>(app: AnyPylon, id: string) => ShardResult<S, I>;
    useSession: (app: AnyPylon) => Session | null;
    useStatus: (app: AnyPylon) => ConnectionStatus;
};
export {};
