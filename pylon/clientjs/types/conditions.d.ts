/**
 * Conditions and orders, judged on the client: for rows that the server has not seen yet, and for
 * replicas. docs/query-semantics.md defines them; `undefined` stands for "only the server can say".
 */
export type Row = Record<string, unknown> & {
    readonly id: string;
};
export type Where = Record<string, unknown>;
export type Order = Record<string, "asc" | "desc">;
/** Whether a row fulfils a condition; undefined if the client does not know one of its operators. */
export declare function matches(where: Where | undefined, row: Record<string, unknown>): boolean | undefined;
/** Null first, then numbers, datetimes as instants, texts by code point. */
export declare function compareValues(a: unknown, b: unknown): number;
/** Compare two rows in an order that the id makes total. `isNew`: a row whose times the server gives. */
export declare function comparator(order: Order | undefined, isNew?: (row: Row) => boolean): (a: Row, b: Row) => number;
