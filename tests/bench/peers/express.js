// The pool's job with Express, express-session and connect-redis: a session is found by its signed cookie. PUT makes one.
// node express.js SOCKET REDIS_SOCKET WORKERS; HUP replaces the workers one by one, the new one listening before.
"use strict";
const cluster = require("node:cluster");
const { once } = require("node:events");
const [socket, redis, workers] = process.argv.slice(2);

function supervise() {
    const leaving = new Set();
    cluster.on("exit", (worker) => leaving.delete(worker.id) || cluster.fork());
    process.on("SIGHUP", async () => {
        for (const old of Object.values(cluster.workers)) {
            await once(cluster.fork(), "listening");
            leaving.add(old.id);
            old.send("shutdown");
            await once(old, "exit");
        }
    });
    process.on("SIGTERM", () => process.exit(0));
    for (let i = 0; i < Number(workers); i++) {
        cluster.fork();
    }
}

async function serve() {
    const express = require("express");
    const session = require("express-session");
    const { RedisStore } = require("connect-redis");
    const { createClient } = require("redis");

    const client = createClient({ socket: { path: redis } });
    client.on("error", (error) => console.error(error.message));
    await client.connect();

    const app = express();
    let leaving = false;
    app.disable("x-powered-by");
    app.set("etag", false);
    app.use((request, response, next) => {
        if (leaving) {
            response.set("Connection", "close");
        }
        next();
    });
    app.use(session({
        // disableTouch: a GET writes nothing, as with the others.
        store: new RedisStore({ client, prefix: "express:", ttl: 86400, disableTouch: true }),
        secret: "of the benchmark",
        resave: false,
        saveUninitialized: false,
    }));
    const found = (request, response, next) =>
        request.session.document ? next() : response.status(401).json({ success: false });
    const saved = (request, response) =>
        response.json({ success: true, sessionId: request.sessionID, message: "Session saved successfully" });

    app.get("/api/sessions", found, (request, response) =>
        response.json({ success: true, sessionId: request.sessionID, session: request.session.document }));
    app.post("/api/sessions", found, express.json(), (request, response) => {
        const document = Object.assign(request.session.document, request.body.updates);
        document.lastActivity = document.metadata.updated = new Date().toISOString();
        saved(request, response);
    });
    app.put("/api/sessions", express.json(), (request, response) => {
        request.session.document = request.body;
        saved(request, response);
    });

    const server = app.listen(socket);
    server.keepAliveTimeout = 75000; // longer than nginx keeps its connections
    process.on("message", () => {
        leaving = true;
        server.close(() => process.exit(0));
    });
}

if (cluster.isPrimary) {
    supervise();
} else {
    serve();
}
