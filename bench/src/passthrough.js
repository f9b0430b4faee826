// The simplest Worker, and the floor of ours: it serves every object in the bucket by its name,
// without tokens, ranges or rules. Unless EDGE_CACHE is "off", it keeps what it sends in the data
// centre's cache, as is usual.
export default {
  async fetch(request, environment, context) {
    const cache = environment.EDGE_CACHE === "off" ? null : await caches.open("passthrough");
    const known = await cache?.match(request.url);
    if (known) return known;
    const object = await environment.BUCKET.get(new URL(request.url).pathname.slice(1));
    if (object === null) return new Response("not found\n", { status: 404 });
    const response = new Response(object.body, {
      headers: {
        "content-type": "application/octet-stream",
        "content-length": String(object.size),
        "cache-control": "public, max-age=3600",
        etag: object.httpEtag,
      },
    });
    if (cache) context.waitUntil(cache.put(request.url, response.clone()));
    return response;
  },
};
