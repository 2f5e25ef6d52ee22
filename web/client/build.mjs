// Builds pylon/clientjs from src: one minified module for each entry, and its types.
// The compilers are native programs that package-lock.json pins, so any Node gives the same bytes.
import { execFileSync } from "node:child_process";
import { readdirSync, readFileSync, rmSync, writeFileSync, mkdirSync, existsSync } from "node:fs";
import { gzipSync } from "node:zlib";
import { build } from "esbuild";

const HERE = new URL(".", import.meta.url).pathname;
const OUT = process.env.PYLON_WEB_OUT ?? `${HERE}../../pylon/clientjs`;
// Gzipped sizes, in bytes, that no entry may exceed.
const LIMITS = { "pylon.js": 14 * 1024, "documents.js": 2 * 1024, "uploads.js": 2 * 1024, "offline.js": 6 * 1024, "react.js": 3 * 1024, "preact.js": 3 * 1024, "vue.js": 3 * 1024, "svelte.js": 3 * 1024 };
const ON_DEMAND = new Set(["documents.js", "uploads.js"]); // the core imports them
const ENTRIES = Object.keys(LIMITS).filter(name => existsSync(`${HERE}src/${name.replace(".js", ".ts")}`));

for (const name of existsSync(OUT) ? readdirSync(OUT) : []) {
  if (/\.js$|\.d\.ts$|^types$/.test(name)) rmSync(`${OUT}/${name}`, { recursive: true });
}
mkdirSync(OUT, { recursive: true });
await build({
  absWorkingDir: HERE, entryPoints: ENTRIES.map(name => `src/${name.replace(".js", ".ts")}`), outdir: OUT,
  bundle: true, format: "esm", target: "es2022", minify: true, charset: "utf8", legalComments: "none",
  external: ["react", "preact", "preact/hooks", "preact/compat", "vue", "svelte", "svelte/store"],
  plugins: [{
    // The other entries import the core as a module of its own, so that a page has it once.
    // Documents and long uploads are loaded on demand.
    name: "entries-are-external",
    setup({ onResolve }) {
      onResolve({ filter: /^\.\/(pylon|documents|uploads)\.js$/ }, ({ path }) => ({ path, external: true }));
    },
  }],
});
execFileSync("npx", ["tsc", "-p", `${HERE}tsconfig.types.json`, "--outDir", `${OUT}/types`], { stdio: "inherit", cwd: HERE });
let isTooLarge = false;
for (const name of ENTRIES) {
  writeFileSync(`${OUT}/${name.replace(".js", ".d.ts")}`, `export * from "./types/${name}";\n`);
  const size = gzipSync(readFileSync(`${OUT}/${name}`), { level: 9 }).length;
  console.log(`${name}: ${size} bytes gzipped of ${LIMITS[name]}`);
  isTooLarge ||= size > LIMITS[name];
}
writeFileSync(`${OUT}/package.json`, `${JSON.stringify({
  name: "pylon-client", version: "0.0.0", description: "The client of a Pylon server", license: "MIT", type: "module", sideEffects: false,
  engines: { node: ">=22" },
  exports: Object.fromEntries(ENTRIES.filter(name => !ON_DEMAND.has(name)).map(name => [
    name === "pylon.js" ? "." : `./${name.replace(".js", "")}`, { types: `./${name.replace(".js", ".d.ts")}`, default: `./${name}` },
  ])),
  files: ["*.js", "*.d.ts", "types"],
  peerDependencies: { preact: ">=10", react: ">=18", svelte: ">=4", vue: ">=3" },
  peerDependenciesMeta: Object.fromEntries(["preact", "react", "svelte", "vue"].map(name => [name, { optional: true }])),
}, null, 2)}\n`);
if (isTooLarge) process.exit(1);
