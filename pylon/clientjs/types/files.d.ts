/**
 * Files: uploads, addresses, signed addresses. A small file goes in one request; a large one by the
 * tus protocol in pieces, so that a lost connection costs one piece.
 */
import type { Environment } from "./environment.js";
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
export declare class Files {
    private readonly env;
    private readonly requests;
    constructor(env: Environment, requests: Requests);
    /** Upload bytes; resolves when the server has the whole file. */
    upload(content: Blob | Uint8Array, options?: UploadOptions): Promise<UploadedFile>;
    /** The address of a file, for those who may read it. `thumb`: a small picture of this size. */
    url(id: string, options?: {
        download?: boolean;
        thumb?: string;
    }): string;
    /** The content of a file. */
    download(id: string, options?: {
        signal?: AbortSignal;
    }): Promise<Blob>;
    /** An address that works without a session until it expires. */
    sign(id: string, expires_s: number, options?: {
        download?: boolean;
    }): Promise<{
        url: string;
        expires_at: number;
    }>;
    remove(id: string): Promise<void>;
}
