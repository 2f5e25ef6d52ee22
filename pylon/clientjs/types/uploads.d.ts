/**
 * Uploads in pieces, by the tus protocol 1.0: a lost connection costs one piece, and the upload goes
 * on where the server says. Loaded by `files.upload` for large files.
 */
import { type Environment } from "./environment.js";
import type { UploadedFile, UploadOptions } from "./files.js";
import type { Requests } from "./requests.js";
export declare function uploadPieces(env: Environment, requests: Requests, blob: Blob, name: string, type: string, { signal, onProgress }: UploadOptions): Promise<UploadedFile>;
