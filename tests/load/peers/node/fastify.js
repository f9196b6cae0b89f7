// Fastify with undici: passes reads through to UPSTREAM_URL with one fixed bearer token.
import Fastify from "fastify";
import { Pool } from "undici";

const upstream = new URL(process.env.UPSTREAM_URL);
const pool = new Pool(upstream.origin, { connections: 512 });
const headers = { authorization: `Bearer ${process.env.UPSTREAM_TOKEN}`, accept: "application/json" };

const app = Fastify();
app.get("/*", async (request, reply) => {
  const answer = await pool.request({ path: upstream.pathname + request.url, method: "GET", headers });
  reply.code(answer.statusCode).header("content-type", answer.headers["content-type"]);
  return reply.send(answer.body);
});
await app.listen({ port: Number(process.env.PORT), host: "127.0.0.1", backlog: 4096 });
