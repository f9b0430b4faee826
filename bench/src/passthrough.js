// What anybody would write first: whatever lies in the bucket, by its name. No tokens, no ranges, no rules. The floor of the Worker.
export default {
  async fetch(request, environment) {
    const object = await environment.BUCKET.get(new URL(request.url).pathname.slice(1));
    if (object === null) return new Response("not found\n", { status: 404 });
    return new Response(object.body, {
      headers: { "content-type": "application/octet-stream", "content-length": String(object.size), etag: object.httpEtag },
    });
  },
};
