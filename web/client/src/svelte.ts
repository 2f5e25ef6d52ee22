/**
 * Stores for Svelte 4 and newer. A window (`app.live(…)`) is a store itself: `$messages.rows`. These
 * functions make stores of the rest; a room or a shard is joined while its store has a subscriber.
 */
import { type Readable, readable } from "svelte/store";
import type { ConnectionStatus, Pylon, PylonError, Room, RoomSnapshot, Session, Shard, ShardStatus } from "./pylon.js";

// biome-ignore lint/suspicious/noExplicitAny: a client of any schema
type AnyPylon = Pylon<any>;

export function session(app: AnyPylon): Readable<Session | null> {
  return readable(app.auth.session, set => app.auth.subscribe(set));
}

export function status(app: AnyPylon): Readable<ConnectionStatus> {
  return readable(app.status, set => app.on("status", set));
}

export function room(app: AnyPylon, name: string, data?: unknown): Readable<RoomSnapshot & { readonly room: Room | null }> {
  return readable<RoomSnapshot & { readonly room: Room | null }>({ members: [], state: "joining", error: null, room: null }, set => {
    const joined = app.room(name, { data });
    const end = joined.subscribe(snapshot => set({ ...snapshot, room: joined }));
    return () => { end(); void joined.leave(); };
  });
}

export interface ShardStore<S, I> { readonly state: S | null; readonly tick: number; readonly status: ShardStatus; readonly shard: Shard<S, I> | null }

export function shard<S = unknown, I = unknown>(app: AnyPylon, id: string): Readable<ShardStore<S, I>> {
  return readable<ShardStore<S, I>>({ state: null, tick: 0, status: { state: "connecting", error: null }, shard: null }, set => {
    const joined = app.shard<S, I>(id);
    const show = () => set({ state: joined.state, tick: joined.tick, status: joined.status, shard: joined });
    const ends = [joined.on("state", show), joined.on("status", show)];
    show();
    return () => { for (const end of ends) end(); joined.close(); };
  });
}

/** Work with its state, as a store. */
export function mutation<A extends unknown[], R>(work: (...args: A) => Promise<R>): Readable<{ isPending: boolean; error: PylonError | null }> & { run(...args: A): Promise<R> } {
  let show: (value: { isPending: boolean; error: PylonError | null }) => void = () => {};
  const store = readable<{ isPending: boolean; error: PylonError | null }>({ isPending: false, error: null }, set => { show = set; });
  return {
    subscribe: store.subscribe,
    run: async (...args) => {
      show({ isPending: true, error: null });
      try {
        const result = await work(...args);
        show({ isPending: false, error: null });
        return result;
      } catch (reason) {
        show({ isPending: false, error: reason as PylonError });
        throw reason;
      }
    },
  };
}
