// status.js: asks /api/status once a second and shows what it says. What is kept is bounded: the answers of the last ten
// seconds, from which rates and quantiles come, and three minutes of points for the charts.

import { Chart, decades, linear } from "./chart.js";
import { age, at, bytes, clockTime, count, duration, isOther, minus, percent, perSecond, plural, plus, quantile, rate } from "./numbers.js";
import { mark, put, putName, Rows } from "./rows.js";

const EVERY_MS = 1000, TIMEOUT_MS = 3000, STALE_MS = 2500;
const WINDOW = 11;   // answers: ten seconds between the first and the last
const POINTS = 180, SPAN_MS = POINTS * EVERY_MS, SPAN = "3 minutes ago";
const NONE = "–";

// Requests that look after the service, this page's among them, are no part of what it does.
const OWN = /^\/api\/(health|metrics|status|coordination)/;

/* --- what an answer means --- */

const answers = []; // the last ones, the oldest first
const points = [];

/** The latest answer with what it is compared to. */
class View {
  constructor() {
    this.now = answers.at(-1);
    this.before = answers[0] === this.now ? null : answers[0];
    this.ms = Date.parse(this.now.timestamp);
    this.seconds = this.before ? (this.ms - Date.parse(this.before.timestamp)) / 1000 : 0;
  }

  total = (path) => at(this.now, path);
  rate = (path) => perSecond(at(this.now, path), this.before ? at(this.before, path) : undefined, this.seconds);

  /** How long ago, or until, a moment of the answer's clock is; undefined of no moment. */
  since = (time) => time ? this.ms - Date.parse(time) : undefined;

  /** Of the n-th endpoint or phase: how fast it is used, and the times of the last ten seconds. */
  timed(list, i) {
    const now = this.now[list][i], before = this.before?.[list][i];
    const buckets = before ? minus(now.buckets, before.buckets) : now.buckets.map(() => 0);
    const total = now.buckets.reduce((sum, n) => sum + n, 0);
    return { ...now, total, recent: buckets, failed: perSecond(now["5xx"], before?.["5xx"], this.seconds),
      rate: this.seconds > 0 ? buckets.reduce((sum, n) => sum + n, 0) / this.seconds : null,
      p50: quantile(0.5, buckets, this.now.bucketBoundsMs), p99: quantile(0.99, buckets, this.now.bucketBoundsMs) };
  }

  list = (name) => this.now[name].map((_, i) => this.timed(name, i));
}

const served = (answer, name) => answer.endpoints.filter((e) => !OWN.test(e.path)).reduce((sum, e) => sum + e[name], 0);

/** A point of the charts: requests of the last second, quantiles of the last ten. */
function pointOf(view) {
  const { now } = view, last = answers.at(-2);
  const seconds = last ? (view.ms - Date.parse(last.timestamp)) / 1000 : 0;
  const recent = plus(view.list("endpoints").filter((e) => !OWN.test(e.path)).map((e) => e.recent));
  const of = (q) => quantile(q, recent, now.bucketBoundsMs);
  return { ms: Date.now(), at: view.ms, rate: perSecond(served(now, "requests"), last && served(last, "requests"), seconds),
    failed: perSecond(served(now, "5xx"), last && served(last, "5xx"), seconds), p50: of(0.5), p95: of(0.95), p99: of(0.99) };
}

function keep(answer) {
  const last = answers.at(-1);
  if (last && (isOther(answer, last) || answer.timestamp <= last.timestamp)) answers.length = 0;
  while (answers.length > 0 && Date.parse(answer.timestamp) - Date.parse(answers[0].timestamp) > EVERY_MS * (WINDOW + 1))
    answers.shift();
  answers.push(answer);
  if (answers.length > WINDOW) answers.shift();
  points.push(pointOf(new View()));
  while (points.length > POINTS || points.at(-1).ms - points[0].ms > SPAN_MS) points.shift();
}

/* --- words and levels: "good", "warn", "bad", or "" of no meaning --- */

const dependency = (d) => ({
  up: `answers in ${duration(d.latencyMs)}`,
  down: "does not answer",
  unused: "not used",
}[d.status] ?? "not known");

const stateOfWorkers = ["starting", "idle", "busy", "draining", "dead"];

/** What degrades the node although its store answers. */
function lacking({ status, store, cleanup, coordination: { coordinator } }) {
  if (status === "healthy" || store.answers === "refuge") return "";
  if (store.answers === "redis" && store.embedded.status === "down") return ", the refuge is broken";
  if (cleanup.database.status === "down") return ", PostgreSQL is away";
  return coordinator.alive ? "" : ", the coordinator is lost";
}

/** What a coordinator that is gone knew last is worth nothing any more. */
const isLed = ({ coordinator, leader }) => coordinator.alive && leader.leaderId !== null;

const texts = {
  node: ({ now }) => now.coordination.podId ?? "This node",
  version: ({ now }) => now.version,
  news: ({ now }) => {
    const { store, status, coordination: c } = now;
    const where = { redis: "Redis answers", refuge: "Redis is away, the refuge answers", embedded: "the embedded store answers" };
    const leads = !isLed(c) ? "" : c.leader.isSelf ? ", this node leads" : `, ${c.leader.leaderId} leads`;
    return `${status[0].toUpperCase()}${status.slice(1)}: ${where[store.answers]}${lacking(now)}${leads}${now.maintenance ? ", in maintenance" : ""}`;
  },
  clock: ({ now }) => clockTime(now.timestamp),
  rate: ({ point }) => rate(point.rate),
  failed: ({ point }) => rate(point.failed),
  p50: ({ point }) => duration(point.p50),
  p99: ({ point }) => duration(point.p99),
  dirty: ({ now }) => now.store.breaker ? count(now.store.breaker.dirty) : NONE,
  hits: (v) => {
    if (v.now.store.cache.maxBytes === 0) return NONE; // there are no copies
    const [hits, misses] = [v.rate("store.cache.hits"), v.rate("store.cache.misses")];
    return percent(hits, hits + misses);
  },
  workers: ({ now: { pool } }) => stateOfWorkers.filter((s) => pool[s] > 0).map((s) => `${pool[s]} ${s}`).join(", "),
  active: ({ now: { sessions } }) => count(sessions.active),
  sessions: ({ now: { sessions } }) => sessions.active === null ? "" : `${count(sessions.active)} live`,
  store: ({ now }) => ({ redis: "in Redis", refuge: "in the refuge", embedded: "embedded" }[now.store.answers]),
  redis: ({ now }) => dependency(now.store.redis),
  embedded: ({ now }) => dependency(now.store.embedded),
  breaker: (v) => {
    const b = v.now.store.breaker;
    return b === null ? "none" : b.open ? `open for ${age(v.since(b.since))}` : "closed";
  },
  copies: ({ now: { store: { cache: c } } }) =>
    c.maxBytes === 0 ? "none" : `${plural(c.entries, "session")}, ${bytes(c.bytes)} of ${bytes(c.maxBytes)}`,
  pods: ({ now: { coordination: c } }) => c.coordinator.alive ? plural(c.podCount, "pod") : "",
  coordinator: ({ now: { store, coordination: { coordinator: c } } }) => {
    const hears = c.subscribed ? "listens to others" : store.breaker === null ? "needs no others" : "does not hear others";
    return c.alive ? `${hears}, loop late by ${c.loopLagMs}\u00a0ms` : "does not run";
  },
  leader: (v) => {
    const { leaderId, isSelf, since } = v.now.coordination.leader;
    return !isLed(v.now.coordination) ? "nobody known" : `${leaderId}${isSelf ? " (this node)" : ""}, for ${age(v.since(since))}`;
  },
  term: ({ now: { coordination: c } }) => isLed(c) ? count(c.leader.term) : NONE,
  messages: ({ now: { coordination: { totals: t } } }) =>
    `${count(t.received)} received, ${count(t.droppedLow + t.droppedNormal + t.droppedHigh)} dropped`,
  limits: ({ now }) => now.rateLimits.length === 0 ? "none reported" : "",
  cleanup: ({ now }) => `every ${duration(now.cleanup.intervalMinutes * 60000)}`,
  database: ({ now }) => dependency(now.cleanup.database),
  cleaned: (v) => v.now.cleanup.last === null ? NONE : `${age(v.since(v.now.cleanup.last))} ago`,
  jobs: ({ now: { cleanup: { jobs } } }) => jobs === null ? "not counted here" :
    Object.entries(jobs).filter(([, n]) => n > 0).map(([status, n]) => `${count(n)} ${status}`).join(", ") || "none",
  connections: ({ now }) => plural(now.pool.connections, "connection"),
  cpu: (v) => ["master", "worker", "keeper", "coordinator"].map((role) => {
    const share = v.rate(`pool.cpuMs.${role}`);
    return `${role} ${share === null ? NONE : `${(share / 10).toFixed(0)} %`}`;
  }).join(", "),
};

const up = { up: "good", down: "bad" };
const levels = {
  news: ({ now }) => ({ healthy: now.maintenance ? "warn" : "good", degraded: "warn" }[now.status] ?? "bad"),
  failed: ({ point }) => point.failed > 0 ? "bad" : "",
  waiting: ({ now: { pool } }) => pool.waiting > pool.waitingLimit / 2 ? "bad" : pool.waiting > 0 ? "warn" : "",
  breaker: ({ now: { store: { breaker: b } } }) => b?.open ? "bad" : b?.dirty > 0 ? "warn" : "",
  redis: ({ now }) => up[now.store.redis.status] ?? "",
  embedded: ({ now }) => up[now.store.embedded.status] ?? "",
  database: ({ now }) => up[now.cleanup.database.status] ?? "",
  cleaned: (v) => v.since(v.now.cleanup.last) > 2 * 60000 * v.now.cleanup.intervalMinutes ? "warn" : "",
  coordinator: ({ now: { store, coordination: { coordinator: c } } }) =>
    c.alive && (c.subscribed || store.redis.status === "unused") ? "good" : store.redis.status === "unused" ? "" : "warn",
  leader: ({ now: { coordination: c } }) => isLed(c) ? "good" : c.coordinator.alive && c.coordinator.subscribed ? "warn" : "",
};

/* --- lists --- */

const timed = (cells, e) => {
  putName(cells.path, e.path === "-" ? "no such path" : e.path ?? `phase: ${e.phase}`);
  put(cells.rate, rate(e.rate));
  put(cells.p50, duration(e.p50));
  put(cells.p99, duration(e.p99));
  if (cells.failed) put(cells.failed, rate(e.failed));
  put(cells.total, count(e.requests ?? e.total));
};

function usage(l) {
  return l.usagePercent ?? (l.limit > 0 && l.remaining !== null ? 100 * (l.limit - l.remaining) / l.limit : null);
}

const lists = {
  workers: {
    items: ({ now }) => now.workers,
    key: (w) => w.slot,
    fill(cells, w, node, v) {
      const before = v.before?.workers.find((b) => b.slot === w.slot), o = w.oldest;
      mark(node, "is", w.state);
      put(cells.pid, w.pid);
      put(cells.state, w.state === "busy" && w.requests > 1 ? `busy with ${w.requests}` : w.state);
      put(cells.rate, `${rate(perSecond(w.answered, before?.answered, v.seconds))}/s`);
      put(cells.doing, w.state === "dead" ? "not yet replaced" :
        o ? `${o.method} ${o.path}` : w.answersThis ? "answered this page" :
        w.connections > 0 ? `keeps ${plural(w.connections, "connection")}` : "waits");
      put(cells.since, o ? duration(o.ageMs) : "");
    },
  },
  endpoints: { items: (v) => v.list("endpoints").filter((e) => e.requests > 0), key: (e) => e.path, fill: timed },
  phases: { items: (v) => v.list("phases").filter((e) => e.total > 0), key: (e) => e.phase, fill: timed },
  pods: {
    items: ({ now: { coordination: c } }) => c.coordinator.alive ? c.pods : [],
    key: (p) => p.podId,
    fill(cells, p, _, v) {
      put(cells.name, p.podId);
      put(cells.until, age(-v.since(p.activeUntil)));
    },
  },
  messages: {
    items: ({ now }) => Object.entries(now.coordination.messages),
    key: ([type]) => type,
    fill(cells, [type, m], _, v) {
      putName(cells.type, type);
      put(cells.rate, rate(v.rate(`coordination.messages.${type}.received`)));
      put(cells.received, count(m.received));
      put(cells.last, m.last === null ? NONE : `${age(v.since(m.last))} ago`);
      putName(cells.from, m.sourcePod ?? NONE);
    },
  },
  limits: {
    items: ({ now }) => now.rateLimits,
    key: (l) => `${l.platform}:${l.endpoint}`,
    fill(cells, l, _, v) {
      const used = usage(l);
      put(cells.name, `${l.platform} ${l.endpoint}`);
      cells.meter.hidden = used === null;
      if (cells.meter.value !== (used ?? 0)) cells.meter.value = used ?? 0;
      put(cells.used, used === null ? NONE : `${used.toFixed(0)} %`);
      put(cells.remaining, l.remaining === null ? NONE : count(l.remaining));
      put(cells.reset, age(l.reset ? -v.since(l.reset) : undefined));
      put(cells.updated, `${age(v.since(l.updated))} ago`);
    },
  },
};

/* --- the page --- */

const all = (name) => [...document.querySelectorAll(`[data-${name}]`)].map((node) => [node, node.dataset[name]]);
const bound = { text: all("text"), level: all("level"), total: all("total"), rate: all("rate") };
const rows = all("rows").map(([node, name]) => [new Rows(node), lists[name]]);
const news = document.querySelector("[data-text=news]"), clock = document.querySelector("[data-text=clock]");

const charts = [
  new Chart(document.getElementById("chart-rate"), {
    title: "Requests a second", from: SPAN, scale: linear, format: rate, mark: count, spanMs: SPAN_MS,
    series: [{ name: "answered", of: (p) => p.rate }, { name: "5xx", of: (p) => p.failed }],
  }),
  new Chart(document.getElementById("chart-latency"), {
    title: "Time to answer", from: SPAN, scale: decades, format: duration, spanMs: SPAN_MS,
    mark: (ms) => ms < 1000 ? `${ms} ms` : `${ms / 1000} s`,
    series: [{ name: "median", of: (p) => p.p50 }, { name: "95th", of: (p) => p.p95 }, { name: "99th", of: (p) => p.p99 }],
  }),
];

function drawCharts() {
  if (points.length > 0) for (const chart of charts) chart.draw(points, Date.now());
}

function show(answer) {
  keep(answer);
  const view = Object.assign(new View(), { point: points.at(-1) });
  for (const [node, name] of bound.text) put(node, texts[name](view));
  for (const [node, name] of bound.level) mark(node, "is", levels[name](view));
  for (const [node, path] of bound.total) put(node, count(view.total(path)));
  for (const [node, path] of bound.rate) put(node, rate(view.rate(path)));
  for (const [list, { items, key, fill }] of rows)
    list.draw(items(view), key, (cells, item, node) => fill(cells, item, node, view));
  drawCharts();
  clock.dateTime = answer.timestamp;
  mark(document.body, "stale", "no");
}

/* --- asking, and noticing that nobody answers --- */

let answered = performance.now(), reason = "no answer";

/** Why there was no answer. */
const words = { TimeoutError: `no answer in ${TIMEOUT_MS / 1000} s`, TypeError: "the web server cannot be reached",
  SyntaxError: "what came is no JSON" };

async function read() {
  const response = await fetch("../api/status", { cache: "no-store", signal: AbortSignal.timeout(TIMEOUT_MS) });
  if (!response.ok) throw new Error(`the web server says ${response.status}`);
  return response.json();
}

async function ask() {
  const began = performance.now();
  const answer = await read().catch((error) => void (reason = words[error.name] ?? error.message));
  try {
    if (answer !== undefined) {
      show(answer);
      answered = performance.now();
    }
  } catch (error) { // the page is of another version than the pool, or wrong
    reason = `this page does not understand the answer (${error.message}); load it again`;
  }
  setTimeout(next, Math.max(100, EVERY_MS - (performance.now() - began)));
}

function next() {
  if (!document.hidden) ask();
  else document.addEventListener("visibilitychange", next, { once: true }); // nobody looks: nothing is asked
}

setInterval(() => {
  if (document.hidden || performance.now() - answered < STALE_MS) return;
  drawCharts(); // time goes on
  if (document.body.dataset.stale === "yes") return;
  const when = answers.length > 0 ? ` What you see is of ${clockTime(answers.at(-1).timestamp)}.` : "";
  put(news, `Stale: ${reason}.${when}`);
  mark(news.parentElement, "is", "bad");
  mark(document.body, "stale", "yes");
}, 250);

next();
