/** Hooks for React 18 and newer: see react-core. */
import { useCallback, useEffect, useMemo, useState, useSyncExternalStore } from "react";
import { hooks, type Library } from "./react-core.js";

export const { useLive, useRow, useQuery, useMutation, useFunction, useRoom, useShard, useSession, useStatus } =
  hooks({ useCallback, useEffect, useMemo, useState, useSyncExternalStore } as unknown as Library);
export type * from "./react-core.js";
