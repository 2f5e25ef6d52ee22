/**
 * The hooks of React and Preact, over what both have: made by `hooks` from the library's functions.
 *
 * Each hook subscribes with `useSyncExternalStore`; a window ends a second after its last reader, so
 * a component that is mounted twice at once costs one subscription. On the server of a page the hooks
 * give the state before the first answer.
 */
import type {
  AnySchema, ArgsOf, ConnectionStatus, EntityName, FunctionName, Live, Pylon, PylonError, QueryOf, ResultOf, Room, RoomSnapshot, RowOf, Session, Shard,
  ShardStatus, Snapshot,
} from "./pylon.js";

/** What the hooks need of the library. */
export interface Library {
  useSyncExternalStore<T>(subscribe: (listener: () => void) => () => void, get: () => T, getOnServer?: () => T): T;
  useMemo<T>(make: () => T, inputs: readonly unknown[]): T;
  useState<T>(first: T): [T, (next: T) => void];
  useEffect(effect: () => (() => void) | undefined, inputs: readonly unknown[]): void;
  useCallback<F extends (...args: never[]) => unknown>(work: F, inputs: readonly unknown[]): F;
}

export interface LiveResult<T> extends Snapshot<T> { readonly window: Live<T> }
export interface QueryResult<T> { readonly rows: readonly T[] | undefined; readonly error: PylonError | null; readonly refetch: () => void }
export interface Mutation<A extends unknown[], R> {
  readonly run: (...args: A) => Promise<R>;
  readonly isPending: boolean;
  readonly error: PylonError | null;
}
export interface RoomResult extends RoomSnapshot { readonly room: Room | null }
export interface ShardResult<S, I> { readonly state: S | null; readonly tick: number; readonly status: ShardStatus; readonly shard: Shard<S, I> | null }

// biome-ignore lint/suspicious/noExplicitAny: a client of any schema
type AnyPylon = Pylon<any>;

export function hooks({ useSyncExternalStore, useMemo, useState, useEffect, useCallback }: Library) {
  /** The rows of a window. `suspend`: the component waits for the first ones. */
  function useLive<S extends AnySchema, E extends EntityName<S>>(
    app: Pylon<S>, entity: E, options: QueryOf<RowOf<S, E>> & { suspend?: boolean } = {},
  ): LiveResult<RowOf<S, E>> {
    const { suspend, ...query } = options;
    const window = useMemo(() => app.live(entity, query as QueryOf<RowOf<S, E>>), [app, entity, JSON.stringify(query)]);
    const get = () => window.snapshot;
    const snapshot = useSyncExternalStore(useCallback((listener: () => void) => window.subscribe(listener), [window]), get, get);
    if (suspend && snapshot.state === "loading") throw window.ready();
    if (suspend && snapshot.error) throw snapshot.error;
    return { ...snapshot, window };
  }

  /** One row; undefined until it is there, and null if there is none. */
  function useRow<S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: E, id: string): RowOf<S, E> | null | undefined {
    const { rows, state } = useLive(app, entity, { where: { id } } as unknown as QueryOf<RowOf<S, E>>);
    return rows[0] ?? (state === "loading" ? undefined : null);
  }

  /** One answer, asked again when the arguments change or by `refetch`. */
  function useQuery<S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: E, options: QueryOf<RowOf<S, E>> = {}): QueryResult<RowOf<S, E>> {
    const [count, setCount] = useState(0);
    const [answer, setAnswer] = useState<{ rows: readonly RowOf<S, E>[] | undefined; error: PylonError | null }>({ rows: undefined, error: null });
    useEffect(() => {
      const stop = new AbortController();
      app.query(entity, options, { signal: stop.signal }).then(
        rows => { if (!stop.signal.aborted) setAnswer({ rows, error: null }); },
        error => { if (!stop.signal.aborted) setAnswer({ rows: undefined, error }); },
      );
      return () => stop.abort();
    }, [app, entity, JSON.stringify(options), count]);
    return { ...answer, refetch: () => setCount(count + 1) };
  }

  /** A function of the server, or any work, with its state. */
  function useMutation<A extends unknown[], R>(work: (...args: A) => Promise<R>): Mutation<A, R> {
    const [{ isPending, error }, set] = useState<{ isPending: boolean; error: PylonError | null }>({ isPending: false, error: null });
    const run = async (...args: A): Promise<R> => {
      set({ isPending: true, error: null });
      try {
        const result = await work(...args);
        set({ isPending: false, error: null });
        return result;
      } catch (reason) {
        set({ isPending: false, error: reason as PylonError });
        throw reason;
      }
    };
    return { run, isPending, error };
  }

  function useFunction<S extends AnySchema, F extends FunctionName<S>>(app: Pylon<S>, name: F): Mutation<[args?: ArgsOf<S, F>], ResultOf<S, F>> {
    return useMutation((args?: ArgsOf<S, F>) => app.fn(name, args));
  }

  /** Join a room while the component is mounted. */
  function useRoom(app: AnyPylon, name: string, data?: unknown): RoomResult {
    const [result, set] = useState<RoomResult>({ members: [], state: "joining", error: null, room: null });
    useEffect(() => {
      const room = app.room(name, { data });
      const end = room.subscribe(snapshot => set({ ...snapshot, room }));
      return () => { end(); void room.leave(); };
    }, [app, name]);
    return result;
  }

  /** Join a shard while the component is mounted. */
  function useShard<S = unknown, I = unknown>(app: AnyPylon, id: string): ShardResult<S, I> {
    const [result, set] = useState<ShardResult<S, I>>({ state: null, tick: 0, status: { state: "connecting", error: null }, shard: null });
    useEffect(() => {
      const shard = app.shard<S, I>(id);
      const show = () => set({ state: shard.state, tick: shard.tick, status: shard.status, shard });
      const ends = [shard.on("state", show), shard.on("status", show)];
      show();
      return () => { for (const end of ends) end(); shard.close(); };
    }, [app, id]);
    return result;
  }

  /** The session, or null. */
  function useSession(app: AnyPylon): Session | null {
    const get = () => app.auth.session;
    return useSyncExternalStore(useCallback((listener: () => void) => app.auth.subscribe(listener), [app]), get, get);
  }

  function useStatus(app: AnyPylon): ConnectionStatus {
    const get = () => app.status;
    return useSyncExternalStore(useCallback((listener: () => void) => app.on("status", listener), [app]), get, get);
  }

  return { useLive, useRow, useQuery, useMutation, useFunction, useRoom, useShard, useSession, useStatus };
}
