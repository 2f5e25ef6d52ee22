export * from "./types/preact.js";
