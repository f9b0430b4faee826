// Runs the built Worker, or another script, in workerd, with an R2 bucket that is filled object by object from a folder.
//
//   node serve.mjs SETTINGS.json
//
// SETTINGS: { script: "dist" | path of one .js file, variables: {}, cache: bool, count: bool }. It says `{"url": …}` on its
// first line and then answers each line on stdin with a line of JSON:
//
//   {"put": KEY, "file": PATH}     stores an object
//   {"delete": KEY}                removes one
//   {"grow": true, "file": PATH}   stores this in place of the object that the Worker asks the size of next, just before
//   {"fail": true|false}           lets R2 fail from now on, or no longer
//   {"calls": true}                the requests to R2 since the last time
//
// It ends with stdin.
import { readFile } from "node:fs/promises";
import { createInterface } from "node:readline";
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import { createRequire } from "node:module";

// Packages lie where scripts/get-worker-tools.sh has put them, or beside this folder after `npm ci`.
const modulesFolder = process.env.DORMER_NODE_MODULES ?? new URL("../node_modules", import.meta.url).pathname;
const { Miniflare } = createRequire(modulesFolder + "/")("miniflare");

const settings = JSON.parse(readFileSync(process.argv[2], "utf8"));
const entry = settings.script;
const folder = dirname(entry);
const modules = [
  { type: "ESModule", path: entry },
  ...readdirSync(folder)
    .filter((name) => /\.(js|wasm)$/.test(name) && join(folder, name) !== entry)
    .map((name) => ({ type: name.endsWith(".wasm") ? "CompiledWasm" : "ESModule", path: join(folder, name) })),
];

// Stands before the Worker's bucket, counts what it asks for, and fails on demand. A service binding's properties are not the
// bucket's, so it wraps the Worker's module instead of the binding.
const counting = `
import worker from "./${entry.slice(folder.length + 1)}";
let calls = [], failing = false, grown;
const counted = (bucket) => new Proxy(bucket, {
  get(bucket, name) {
    const value = bucket[name];
    if (typeof value !== "function") return value;
    return (...given) => {
      calls.push([name, given[0]]);
      if (failing) return Promise.reject(new Error(name + ": We encountered an internal error. Please try again. (10001)"));
      if (name === "head" && grown !== undefined) {
        const content = grown;
        grown = undefined;
        return bucket.put(given[0], content).then(() => value.apply(bucket, given));
      }
      return value.apply(bucket, given);
    };
  },
});
export default {
  async fetch(request, environment, context) {
    const url = new URL(request.url);
    if (url.hostname === "control.test") {
      if (url.pathname === "/fail") failing = url.search === "?1";
      if (url.pathname === "/grow") grown = await request.arrayBuffer();
      const answer = Response.json(calls);
      calls = [];
      return answer;
    }
    return worker.fetch(request, { ...environment, BUCKET: counted(environment.BUCKET) }, context);
  },
};`;
if (settings.count) modules.unshift({ type: "ESModule", path: join(folder, "counting.js"), contents: counting });

const miniflare = new Miniflare({
  modules,
  modulesRoot: folder,
  compatibilityDate: "2026-04-01",
  r2Buckets: ["BUCKET"],
  bindings: settings.variables ?? {},
  cache: settings.cache ?? true,
  cf: false,
  host: "127.0.0.1",
  port: 0,
});
const url = await miniflare.ready;
const bucket = await miniflare.getR2Bucket("BUCKET");
console.log(JSON.stringify({ url: url.href }));

const control = async (path, init) => (await miniflare.dispatchFetch("http://control.test" + path, init)).json();
for await (const line of createInterface({ input: process.stdin })) {
  const order = JSON.parse(line);
  let answer = {};
  try {
    if (order.put !== undefined) {
      // The way through Node wants exactly this type.
      await bucket.put(order.put, new Uint8Array(await readFile(order.file)));
    } else if (order.delete !== undefined) {
      await bucket.delete(order.delete);
    } else if (order.grow) {
      await control("/grow", { method: "POST", body: await readFile(order.file) });
    } else if (order.fail !== undefined) {
      await control(order.fail ? "/fail?1" : "/fail?0");
    } else if (order.calls) {
      answer = { calls: await control("/") };
    }
  } catch (error) {
    answer = { error: String(error?.stack ?? error) };
  }
  console.log(JSON.stringify(answer));
}
await miniflare.dispose();
