/**
 * Types of an app. `pylonctl codegen ts` writes a `Schema`; `pylon<Schema>()` then knows the entities,
 * their fields and the functions. Without one every entity is a record.
 */
import type { Row } from "./conditions.js";
export interface EntityTypes {
    readonly row: {
        readonly id: string;
    };
    readonly insert: object;
    readonly update: object;
}
export interface AnySchema {
    entities: any;
    functions?: any;
    shards?: any;
}
export interface UntypedSchema extends AnySchema {
    entities: Record<string, {
        row: Row;
        insert: Record<string, unknown>;
        update: Record<string, unknown>;
    }>;
    functions: Record<string, {
        args: Record<string, unknown>;
        result: unknown;
    }>;
    shards: Record<string, {
        state: unknown;
        input: unknown;
    }>;
}
export type EntityName<S extends AnySchema> = keyof S["entities"] & string;
export type RowOf<S extends AnySchema, E extends EntityName<S>> = S["entities"][E]["row"];
export type InsertOf<S extends AnySchema, E extends EntityName<S>> = S["entities"][E]["insert"] & {
    id?: string;
};
export type UpdateOf<S extends AnySchema, E extends EntityName<S>> = S["entities"][E]["update"];
export type FunctionName<S extends AnySchema> = keyof NonNullable<S["functions"]> & string;
export type ArgsOf<S extends AnySchema, F extends FunctionName<S>> = NonNullable<S["functions"]>[F]["args"];
export type ResultOf<S extends AnySchema, F extends FunctionName<S>> = NonNullable<S["functions"]>[F]["result"];
type Scalar = string | number | boolean | null;
type Comparable<V> = NonNullable<V> extends string | number ? {
    $gt?: NonNullable<V>;
    $gte?: NonNullable<V>;
    $lt?: NonNullable<V>;
    $lte?: NonNullable<V>;
} : unknown;
type Textual<V> = NonNullable<V> extends string ? {
    $like?: string;
    $startsWith?: string;
} : unknown;
type Operators<V> = {
    $ne?: V;
    $not?: V;
    $in?: readonly V[];
    $nin?: readonly V[];
    $exists?: boolean;
} & Comparable<V> & Textual<V>;
/** A condition on rows `R`. */
export type WhereOf<R> = string extends keyof R ? Record<string, unknown> : {
    [K in keyof R]?: R[K] extends Scalar | undefined ? R[K] | Operators<R[K]> : unknown;
} & {
    $or?: readonly WhereOf<R>[];
    $and?: readonly WhereOf<R>[];
    $search?: string;
};
export type OrderOf<R> = string extends keyof R ? Record<string, "asc" | "desc"> : {
    [K in keyof R]?: "asc" | "desc";
};
export type PositionOf<R> = string extends keyof R ? Record<string, unknown> : Partial<R>;
export interface QueryOf<R> {
    where?: WhereOf<R>;
    order?: OrderOf<R>;
    /** 1 to 1,000 rows. */
    limit?: number;
    /** Only the rows behind this position in the order: the values of the order's fields, and an id. */
    after?: PositionOf<R>;
    before?: PositionOf<R>;
}
export {};
