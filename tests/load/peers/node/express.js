// Express with http-proxy-middleware: passes reads through to UPSTREAM_URL with one fixed bearer token.
import http from "node:http";
import express from "express";
import { createProxyMiddleware } from "http-proxy-middleware";

const app = express();
app.disable("x-powered-by");
app.use(
  createProxyMiddleware({
    target: process.env.UPSTREAM_URL,
    changeOrigin: true,
    agent: new http.Agent({ keepAlive: true }),
    headers: { authorization: `Bearer ${process.env.UPSTREAM_TOKEN}` },
  }),
);
app.listen(Number(process.env.PORT), "127.0.0.1", 4096);
