/**
 * The overlay: pending writes, laid over rows that the server has sent. Pure functions.
 *
 * A write lies over a set of rows until that set has seen the write: a change of the row with its
 * seq, or any change after it. A refused write is taken away, and the rows are the server's again.
 */
import { type Order, type Row, type Where } from "./conditions.js";
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
export declare function overlaid(base: readonly Row[], operations: readonly Operation[], shape: WindowShape): Row[];
/** Put a row where the order has it. */
export declare function place(rows: Row[], row: Row, compare: (a: Row, b: Row) => number): void;
