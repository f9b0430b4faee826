// The Worker's entrance: hands requests to the module, and survives its death.
import wasm from "./dormer_worker_bg.wasm";
import { initSync, serve, __wbg_reset_state } from "./dormer_worker.js";

initSync({ module: wasm });

export default {
  async fetch(request, environment, context) {
    try {
      return await serve(request, environment, context);
    } catch (error) {
      console.error("a request failed", error?.stack ?? error);
      // After a trap the module's memory is in no known state: the next request gets a fresh instance.
      if (error instanceof WebAssembly.RuntimeError) __wbg_reset_state();
      // Never "not here": Nix tries again.
      return new Response("the edge failed; try again\n", {
        status: 503,
        headers: { "retry-after": "5", "cache-control": "private, no-store", vary: "authorization" },
      });
    }
  },
};
