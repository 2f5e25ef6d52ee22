export * from "./types/offline.js";
