/**
 * The overlay: pending writes, laid over rows that the server has sent. Pure functions.
 *
 * A write lies over a set of rows until that set has seen the write: a change of the row with its
 * seq, or any change after it. A refused write is taken away, and the rows are the server's again.
 */
import { comparator, matches, type Order, type Row, type Where } from "./conditions.js";

export interface Operation {
  readonly kind: "insert" | "update" | "delete";
  readonly entity: string;
  readonly row_id: string;
  readonly data?: Record<string, unknown> | undefined;
  /** Of the change that the server has made of it; null while it is pending. */
  seq: number | null;
}

export interface WindowShape {
  readonly where?: Where | undefined;
  readonly order?: Order | undefined;
  readonly limit: number | undefined;
  readonly after?: Record<string, unknown> | undefined;
  readonly before?: Record<string, unknown> | undefined;
}

/** The rows of a window with the operations over them. `base` stays as it is. */
export function overlaid(base: readonly Row[], operations: readonly Operation[], shape: WindowShape): Row[] {
  const rows = base.slice();
  if (!operations.length) return rows;
  const written = new Set(operations.filter(each => each.kind === "insert").map(each => each.row_id));
  const compare = comparator(shape.order, row => written.has(row.id));
  for (const { kind, row_id, data } of operations) {
    const at = rows.findIndex(row => row.id === row_id);
    const present = rows[at];
    if (kind === "delete") {
      if (present) rows.splice(at, 1);
    } else if (kind === "insert") {
      const row = { ...data, id: row_id };
      if (!present && matches(shape.where, row) && isBehind(row, shape, compare)) place(rows, row, compare);
    } else if (present) {
      const row = { ...present, ...data, id: row_id };
      rows.splice(at, 1);
      if (matches(shape.where, row) === false) continue;
      if (compare(present, row) === 0) rows.splice(at, 0, row);
      else place(rows, row, compare);
    }
  }
  const { limit } = shape;
  if (limit === undefined || rows.length <= limit) return rows;
  return shape.before ? rows.slice(-limit) : rows.slice(0, limit);
}

function isBehind(row: Row, shape: WindowShape, compare: (a: Row, b: Row) => number): boolean {
  return (!shape.after || compare(row, shape.after as Row) > 0) && (!shape.before || compare(row, shape.before as Row) < 0);
}

/** Put a row where the order has it. */
export function place(rows: Row[], row: Row, compare: (a: Row, b: Row) => number): void {
  let [low, high] = [0, rows.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (compare(rows[middle] as Row, row) < 0) low = middle + 1;
    else high = middle;
  }
  rows.splice(low, 0, row);
}
