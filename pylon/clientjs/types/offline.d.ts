/**
 * The offline extension: replicas of whole entities, and an outbox that outlives the page, in
 * IndexedDB. `pylon({ offline: offline({ replica: ["Room"] }) })`.
 *
 * Each user has a database of their own. Rows are stored in buckets, by the last two digits of their
 * ids. Buckets and the cursor are written in one transaction, so a stored replica is always that of one
 * moment; one tab writes it. A write is stored before it is
 * sent. Without IndexedDB both live in memory. docs/clients/behaviour.md has the rules.
 */
import { type Extension } from "./pylon.js";
export interface OfflineOptions {
    /** The entities of which the client keeps every row that its user may read. */
    replica?: readonly string[];
}
/** Make the extension. */
export declare function offline(options?: OfflineOptions): Extension;
