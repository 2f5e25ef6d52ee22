/**
 * Files: uploads, addresses, signed addresses. A small file goes in one request; a large one by the
 * tus protocol in pieces, so that a lost connection costs one piece.
 */
import type { Environment } from "./environment.js";
import { errorOf } from "./errors.js";
import type { Requests } from "./requests.js";

export interface UploadOptions {
  name?: string;
  type?: string;
  onProgress?: (sent_bytes: number, size_bytes: number) => void;
  signal?: AbortSignal;
}

export interface UploadedFile {
  readonly id: string;
  /** Below the server's own address: `files.url(id)` is the whole one. */
  readonly url: string;
  readonly size: number;
}

const PIECE_BYTES = 5 * 1024 * 1024;
const PIECE_TIMEOUT_MS = 120_000;

export class Files {
  constructor(private readonly env: Environment, private readonly requests: Requests) {}

  /** Upload bytes; resolves when the server has the whole file. */
  async upload(content: Blob | Uint8Array, options: UploadOptions = {}): Promise<UploadedFile> {
    const blob = content instanceof Blob ? content : new Blob([content as BlobPart]);
    const name = options.name ?? (blob as { name?: string }).name ?? "file";
    const type = options.type || blob.type || "application/octet-stream";
    const { signal, onProgress } = options;
    if (blob.size > PIECE_BYTES) {
      const { uploadPieces } = await import("./uploads.js"); // loaded by those who need it
      return uploadPieces(this.env, this.requests, blob, name, type, options);
    }
    onProgress?.(0, blob.size);
    const file = await this.requests.call<UploadedFile>("POST", "/api/files/upload", blob, {
      headers: { "Content-Type": type, "X-Filename": encodeURIComponent(name) }, signal, timeout_ms: PIECE_TIMEOUT_MS,
    });
    onProgress?.(blob.size, blob.size);
    return file;
  }

  /** The address of a file, for those who may read it. `thumb`: a small picture of this size. */
  url(id: string, options: { download?: boolean; thumb?: string } = {}): string {
    const query = new URLSearchParams();
    if (options.download) query.set("download", "");
    if (options.thumb) query.set("thumb", options.thumb);
    const text = query.toString();
    return `${this.requests.url}/api/files/${encodeURIComponent(id)}${text && `?${text}`}`;
  }

  /** The content of a file. */
  async download(id: string, options: { signal?: AbortSignal } = {}): Promise<Blob> {
    const response = await this.requests.open("GET", this.url(id), undefined, {}, options.signal, PIECE_TIMEOUT_MS);
    if (!response.ok) throw errorOf(await response.json().catch(() => null), { status: response.status });
    return response.blob();
  }

  /** An address that works without a session until it expires. */
  sign(id: string, expires_s: number, options: { download?: boolean } = {}): Promise<{ url: string; expires_at: number }> {
    return this.requests.call("POST", `/api/files/${encodeURIComponent(id)}/sign`, { expires_s, ...options });
  }

  async remove(id: string): Promise<void> { await this.requests.call("DELETE", `/api/files/${encodeURIComponent(id)}`); }
}
