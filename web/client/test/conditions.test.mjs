// Conditions as the server judges them.
import assert from "node:assert/strict";
import test from "node:test";
import { comparator, compareValues, matches } from "../../../pylon/clientjs/pylon.js";

test("null is less than every value, and texts are ordered by code point", () => {
  const sorted = ["\u{1F600}", "a", null, "B", "\uFFFF", "ä"].sort(compareValues);
  assert.deepEqual(sorted, [null, "B", "a", "ä", "\uFFFF", "\u{1F600}"]);
});

test("a datetime is an instant, whatever its notation", () => {
  assert.equal(matches({ at: "2026-03-29T00:30:00Z" }, { at: "2026-03-29T02:30:00.000000+02:00" }), true);
  assert.equal(matches({ at: { $gt: "2026-03-29T00:30:00Z" } }, { at: "2026-03-29T02:30:00+02:00" }), false);
});

test("conditions of null, lists and unknown operators", () => {
  assert.equal(matches({ a: null }, {}), true);
  assert.equal(matches({ a: { $ne: 1 } }, { a: null }), false);
  assert.equal(matches({ a: { $nin: [] } }, { a: null }), true);
  assert.equal(matches({ a: { $in: [null, 2] } }, { a: null }), true);
  assert.equal(matches({ a: { $like: "x%" } }, { a: "xy" }), undefined);
  assert.equal(matches({ a: { $like: "x%" }, b: 2 }, { a: "xy", b: 1 }), false);
  assert.equal(matches({ $or: [{ a: 1 }, { a: { $like: "%" } }] }, { a: 1 }), true);
  assert.equal(matches({ "meta.size": { $gt: 3 } }, { meta: { size: 4 } }), true);
});

test("a row whose time the server gives is the newest", () => {
  const fresh = { id: "b" };
  const compare = comparator({ sentAt: "desc" }, row => row === fresh);
  assert.ok(compare(fresh, { id: "a", sentAt: "2026-01-01T00:00:00Z" }) < 0);
});
