export * from "./types/svelte.js";
