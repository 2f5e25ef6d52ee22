/** Hooks for Preact 10 and newer: see react-core. Preact's own hooks suffice, without `preact/compat`. */
import { useCallback, useEffect, useMemo, useState } from "preact/hooks";
import { hooks, type Library } from "./react-core.js";

function useSyncExternalStore<T>(subscribe: (listener: () => void) => () => void, get: () => T): T {
  const value = get();
  const [{ seen }, setSeen] = useState({ seen: value });
  useEffect(() => {
    const check = () => { const next = get(); setSeen({ seen: next }); };
    const end = subscribe(check);
    if (get() !== seen) check(); // it changed between the first render and now
    return end;
  }, [subscribe]);
  return value;
}

export const { useLive, useRow, useQuery, useMutation, useFunction, useRoom, useShard, useSession, useStatus } =
  hooks({ useCallback, useEffect, useMemo, useState, useSyncExternalStore } as unknown as Library);
export type * from "./react-core.js";
