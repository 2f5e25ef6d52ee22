/**
 * Conditions and orders, judged on the client: for rows that the server has not seen yet, and for
 * replicas. docs/query-semantics.md defines them; `undefined` stands for "only the server can say".
 */

export type Row = Record<string, unknown> & { readonly id: string };
export type Where = Record<string, unknown>;
export type Order = Record<string, "asc" | "desc">;

/** Whether a row fulfils a condition; undefined if the client does not know one of its operators. */
export function matches(where: Where | undefined, row: Record<string, unknown>): boolean | undefined {
  let known: boolean | undefined = true;
  for (const [name, wanted] of Object.entries(where ?? {})) {
    const holds = name === "$and" ? every(wanted as Where[], row)
      : name === "$or" ? some(wanted as Where[], row)
      : name.startsWith("$") ? undefined
      : field(wanted, valueAt(row, name));
    if (holds === false) return false;
    if (holds === undefined) known = undefined;
  }
  return known;
}

function every(parts: Where[], row: Record<string, unknown>): boolean | undefined {
  const found = parts.map(part => matches(part, row));
  return found.includes(false) ? false : found.includes(undefined) ? undefined : true;
}

function some(parts: Where[], row: Record<string, unknown>): boolean | undefined {
  const found = parts.map(part => matches(part, row));
  return found.includes(true) ? true : found.includes(undefined) ? undefined : false;
}

function valueAt(row: Record<string, unknown>, name: string): unknown {
  if (name in row || !name.includes(".")) return row[name] ?? null;
  let value: unknown = row;
  for (const part of name.split(".")) {
    if (typeof value !== "object" || value === null || Array.isArray(value)) return null;
    value = (value as Record<string, unknown>)[part];
  }
  return value ?? null;
}

function field(wanted: unknown, value: unknown): boolean | undefined {
  if (typeof wanted !== "object" || wanted === null) return equal(value, wanted);
  let known: boolean | undefined = true;
  for (const [operator, operand] of Object.entries(wanted)) {
    const test = OPERATORS[operator];
    const holds = test?.(value, operand);
    if (holds === false) return false;
    if (holds === undefined) known = undefined;
  }
  return known;
}

type Test = (value: unknown, operand: unknown) => boolean | undefined;
const unequal: Test = (value, operand) => operand === null ? value !== null : value !== null && !equal(value, operand);
const bound = (holds: (order: number) => boolean): Test => (value, operand) => value !== null && holds(compareValues(value, operand));
const text = (holds: (value: string, operand: string) => boolean): Test => (value, operand) =>
  typeof value === "string" && holds(value, String(operand));

const OPERATORS: Record<string, Test> = {
  $ne: unequal,
  $not: unequal,
  $gt: bound(order => order > 0),
  $gte: bound(order => order >= 0),
  $lt: bound(order => order < 0),
  $lte: bound(order => order <= 0),
  $in: (value, operand) => (operand as unknown[]).some(each => equal(value, each)),
  $nin: (value, operand) => {
    const list = operand as unknown[];
    return list.length === 0 || (value !== null && !list.some(each => each !== null && equal(value, each)));
  },
  $exists: (value, operand) => (value !== null) === operand,
  $startsWith: text((value, operand) => value.startsWith(operand)),
};

const DATETIME = /^\d{4}-\d\d-\d\d[T ]\d\d:\d\d/;

function equal(value: unknown, operand: unknown): boolean {
  if (value === operand) return true;
  if (value === null || operand === null) return false;
  if (typeof value === "boolean" || typeof operand === "boolean") return Number(value) === Number(operand);
  return typeof value === "string" && typeof operand === "string" && DATETIME.test(value) && DATETIME.test(operand)
    && compareValues(value, operand) === 0;
}

/** Null first, then numbers, datetimes as instants, texts by code point. */
export function compareValues(a: unknown, b: unknown): number {
  if (a === b) return 0;
  if (a === null || a === undefined) return b === null || b === undefined ? 0 : -1;
  if (b === null || b === undefined) return 1;
  if (typeof a !== "string" || typeof b !== "string") return Number(a) - Number(b);
  if (DATETIME.test(a) && DATETIME.test(b)) {
    const apart = Date.parse(instant(a)) - Date.parse(instant(b));
    if (apart) return apart;
    if (a.length === b.length) return a < b ? -1 : 1; // microseconds, which Date drops
    return 0;
  }
  return compareTexts(a, b);
}

const instant = (value: string): string => /Z|[+-]\d\d:?\d\d$/i.test(value) ? value : `${value}Z`;

/** By code point, as the server orders: not by UTF-16 unit, not by a language. */
function compareTexts(a: string, b: string): number {
  const length = Math.min(a.length, b.length);
  for (let i = 0; i < length; i++) {
    const [x, y] = [a.charCodeAt(i), b.charCodeAt(i)];
    if (x === y) continue;
    const isSurrogate = (unit: number) => unit >= 0xd800 && unit < 0xe000;
    return isSurrogate(x) === isSurrogate(y) ? x - y : isSurrogate(x) ? 1 : -1;
  }
  return a.length - b.length;
}

/** Compare two rows in an order that the id makes total. `isNew`: a row whose times the server gives. */
export function comparator(order: Order | undefined, isNew: (row: Row) => boolean = () => false): (a: Row, b: Row) => number {
  const fields = Object.entries(order ?? {});
  if (!fields.some(([name]) => name === "id")) fields.push(["id", "asc"]);
  return (a, b) => {
    for (const [name, direction] of fields) {
      // A field that the server fills, such as the time: the row is the newest.
      const [late, later] = [isNew(a) && a[name] === undefined, isNew(b) && b[name] === undefined];
      const apart = late !== later ? (late ? 1 : -1)
        : name === "id" ? (a.id < b.id ? -1 : Number(a.id > b.id)) // PERF: hex digits need no code points
        : compareValues(a[name], b[name]);
      if (apart) return direction === "desc" ? -apart : apart;
    }
    return 0;
  };
}
