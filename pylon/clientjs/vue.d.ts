export * from "./types/vue.js";
