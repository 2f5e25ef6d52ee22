/**
 * Composables for Vue 3: shallow refs that follow the client, and end with the scope that made them.
 * Arguments may be refs or getters; a change makes the window anew.
 */
import { type MaybeRefOrGetter, onScopeDispose, type ShallowRef, shallowRef, toValue, watchEffect } from "vue";
import type {
  AnySchema, ConnectionStatus, EntityName, Live, Pylon, PylonError, QueryOf, Room, RoomSnapshot, RowOf, Session, Shard, ShardStatus, Snapshot,
} from "./pylon.js";

// biome-ignore lint/suspicious/noExplicitAny: a client of any schema
type AnyPylon = Pylon<any>;

/** The rows of a window, and the window itself. */
export function useLive<S extends AnySchema, E extends EntityName<S>>(
  app: Pylon<S>, entity: MaybeRefOrGetter<E>, options: MaybeRefOrGetter<QueryOf<RowOf<S, E>>> = {},
): { readonly snapshot: ShallowRef<Snapshot<RowOf<S, E>>>; readonly window: ShallowRef<Live<RowOf<S, E>>> } {
  const window = shallowRef(app.live(toValue(entity), toValue(options)));
  const snapshot = shallowRef(window.value.snapshot);
  watchEffect(onCleanup => {
    const live = app.live(toValue(entity), toValue(options));
    window.value = live;
    onCleanup(live.subscribe(next => { snapshot.value = next; }));
  });
  return { snapshot, window };
}

/** One row; undefined until it is there, and null if there is none. */
export function useRow<S extends AnySchema, E extends EntityName<S>>(app: Pylon<S>, entity: E, id: MaybeRefOrGetter<string>): ShallowRef<RowOf<S, E> | null | undefined> {
  const row = shallowRef<RowOf<S, E> | null | undefined>();
  watchEffect(onCleanup => {
    onCleanup(app.row(entity, toValue(id)).subscribe(({ rows, state }) => { row.value = rows[0] ?? (state === "loading" ? undefined : null); }));
  });
  return row;
}

/** One answer, asked again when the arguments change or by `refetch`. */
export function useQuery<S extends AnySchema, E extends EntityName<S>>(
  app: Pylon<S>, entity: MaybeRefOrGetter<E>, options: MaybeRefOrGetter<QueryOf<RowOf<S, E>>> = {},
): { readonly rows: ShallowRef<readonly RowOf<S, E>[] | undefined>; readonly error: ShallowRef<PylonError | null>; refetch(): void } {
  const rows = shallowRef<readonly RowOf<S, E>[] | undefined>();
  const error = shallowRef<PylonError | null>(null);
  const count = shallowRef(0);
  watchEffect(onCleanup => {
    void count.value;
    const stop = new AbortController();
    onCleanup(() => stop.abort());
    app.query(toValue(entity), toValue(options), { signal: stop.signal }).then(
      found => { rows.value = found; error.value = null; },
      reason => { if (!stop.signal.aborted) error.value = reason; },
    );
  });
  return { rows, error, refetch: () => { count.value += 1; } };
}

/** Work with its state. */
export function useMutation<A extends unknown[], R>(work: (...args: A) => Promise<R>): { run(...args: A): Promise<R>; readonly isPending: ShallowRef<boolean>; readonly error: ShallowRef<PylonError | null> } {
  const isPending = shallowRef(false);
  const error = shallowRef<PylonError | null>(null);
  return {
    isPending, error,
    run: async (...args) => {
      isPending.value = true;
      error.value = null;
      try {
        return await work(...args);
      } catch (reason) {
        error.value = reason as PylonError;
        throw reason;
      } finally {
        isPending.value = false;
      }
    },
  };
}

export function useRoom(app: AnyPylon, name: string, data?: unknown): { readonly snapshot: ShallowRef<RoomSnapshot>; readonly room: Room } {
  const room = app.room(name, { data });
  const snapshot = shallowRef(room.snapshot);
  const end = room.subscribe(next => { snapshot.value = next; });
  onScopeDispose(() => { end(); void room.leave(); });
  return { snapshot, room };
}

export function useShard<S = unknown, I = unknown>(app: AnyPylon, id: string): { readonly state: ShallowRef<S | null>; readonly status: ShallowRef<ShardStatus>; readonly shard: Shard<S, I> } {
  const shard = app.shard<S, I>(id);
  const state = shallowRef<S | null>(shard.state);
  const status = shallowRef(shard.status);
  const ends = [shard.on("state", next => { state.value = next; }), shard.on("status", next => { status.value = next; })];
  onScopeDispose(() => { for (const end of ends) end(); shard.close(); });
  return { state, status, shard };
}

export function useSession(app: AnyPylon): ShallowRef<Session | null> {
  const session = shallowRef(app.auth.session);
  onScopeDispose(app.auth.subscribe(next => { session.value = next; }));
  return session;
}

export function useStatus(app: AnyPylon): ShallowRef<ConnectionStatus> {
  const status = shallowRef(app.status);
  onScopeDispose(app.on("status", next => { status.value = next; }));
  return status;
}
