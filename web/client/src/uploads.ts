/**
 * Uploads in pieces, by the tus protocol 1.0: a lost connection costs one piece, and the upload goes
 * on where the server says. Loaded by `files.upload` for large files.
 */
import { type Environment, sleep } from "./environment.js";
import type { UploadedFile, UploadOptions } from "./files.js";
import { PylonError } from "./pylon.js";
import type { Requests } from "./requests.js";

const PIECE_BYTES = 5 * 1024 * 1024;
const PIECE_TIMEOUT_MS = 120_000;
const TRIES = 8;
const TUS = { "Tus-Resumable": "1.0.0" };

export async function uploadPieces(
  env: Environment, requests: Requests, blob: Blob, name: string, type: string, { signal, onProgress }: UploadOptions,
): Promise<UploadedFile> {
  const metadata = Object.entries({ filename: name, filetype: type }).map(([key, value]) => `${key} ${base64(value)}`).join(",");
  const made = await requests.send("POST", "/api/files/tus", undefined, {
    headers: { ...TUS, "Upload-Length": String(blob.size), "Upload-Metadata": metadata }, signal,
  });
  const place = made.headers.get("location") ?? "";
  const path = /^https?:/.test(place) ? new URL(place).pathname : place;
  let offset = 0;
  for (let failures = 0; offset < blob.size;) {
    onProgress?.(offset, blob.size);
    try {
      const { headers } = await requests.send("PATCH", path, blob.slice(offset, offset + PIECE_BYTES), {
        headers: { ...TUS, "Upload-Offset": String(offset), "Content-Type": "application/offset+octet-stream" },
        signal, retries: 0, timeout_ms: PIECE_TIMEOUT_MS,
      });
      offset = Number(headers.get("upload-offset") ?? offset + PIECE_BYTES);
      failures = 0;
    } catch (error) {
      if (!(error instanceof PylonError) || !(error.retryable || error.status === 409) || ++failures >= TRIES) throw error;
      await sleep(env, env.random() * 500 * 2 ** failures, signal);
      const { headers } = await requests.send("HEAD", path, undefined, { headers: TUS, signal });
      offset = Number(headers.get("upload-offset") ?? 0);
    }
  }
  onProgress?.(blob.size, blob.size);
  const id = path.slice(path.lastIndexOf("/") + 1);
  return { id, url: `/api/files/${encodeURIComponent(id)}`, size: blob.size };
}

const base64 = (text: string): string => btoa(String.fromCharCode(...new TextEncoder().encode(text)));
