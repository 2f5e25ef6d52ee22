export * from "./types/pylon.js";
