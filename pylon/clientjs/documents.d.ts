export * from "./types/documents.js";
