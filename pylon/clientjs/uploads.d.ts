export * from "./types/uploads.js";
