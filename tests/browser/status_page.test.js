// The status page in Chromium, before a real pool: `make browser`. Screenshots go to BUILD/browser/screenshots.
"use strict";

const assert = require("node:assert/strict");
const { spawn } = require("node:child_process");
const { mkdirSync } = require("node:fs");
const path = require("node:path");
const { createInterface } = require("node:readline");
const { after, afterEach, before, beforeEach, describe, test } = require("node:test");
const { chromium } = require("playwright-core");

const SHOTS = path.resolve(process.env.HYPERPAGE_BUILD ?? "build", "browser/screenshots");
const CHROMIUM = process.env.CHROMIUM ?? "/usr/bin/chromium";
const PATIENCE_MS = 10000;

/** world.py: await world("create", 5). */
async function startWorld(front) {
  const child = spawn("/usr/bin/python3", ["-B", path.join(__dirname, "world.py"), front],
    { stdio: ["pipe", "pipe", "inherit"] });
  const lines = createInterface({ input: child.stdout })[Symbol.asyncIterator]();
  const read = async () => {
    const { value, done } = await lines.next();
    assert.ok(!done, "world.py has ended");
    return JSON.parse(value);
  };
  const world = (...order) => {
    child.stdin.write(`${JSON.stringify(order)}\n`);
    return read();
  };
  world.url = await read();
  world.end = () => new Promise((ended) => {
    child.on("close", ended);
    child.stdin.end();
  });
  return world;
}

let browser;
before(async () => {
  mkdirSync(SHOTS, { recursive: true });
  browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu",
    "--disable-quic", "--disable-background-networking", "--disable-component-update", "--disable-sync"] }); // as root it has no sandbox
});
after(() => browser.close());

// An outage makes the browser complain about what it cannot load; anything else is ours.
const isOutage = (text) => /Failed to load resource/.test(text);

async function openPage(world, options = {}) {
  const context = await browser.newContext({ viewport: { width: 1280, height: 900 }, ...options });
  const page = await context.newPage();
  page.complaints = [];
  page.answers = new Map(); // by timestamp
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) page.complaints.push(message.text());
  });
  page.on("pageerror", (error) => page.complaints.push(String(error)));
  page.on("response", async (response) => {
    if (!response.url().endsWith("/api/status") || !response.ok()) return;
    const answer = await response.json().catch(() => null); // gone with the page
    if (answer) page.answers.set(answer.timestamp, answer);
  });
  page.setDefaultTimeout(PATIENCE_MS);
  await page.goto(world.url);
  await page.waitForSelector("time[datetime]");
  return page;
}

const text = (page, selector) => page.locator(selector).innerText();
const shot = (page, name) => page.screenshot({ path: path.join(SHOTS, `${name}.png`), fullPage: true });
const becomes = (page, selector, pattern) =>
  page.waitForFunction(([s, p]) => new RegExp(p).test(document.querySelector(s)?.innerText), [selector, pattern.source]);
const refreshed = (page, times = 1) => page.evaluate(async (n) => {
  const clock = document.querySelector("time");
  for (; n > 0; n--) {
    const shown = clock.dateTime;
    while (clock.dateTime === shown) await new Promise((resolve) => setTimeout(resolve, 20));
  }
}, times);

/** Answers every question of the page itself: with the last real answer as `change` makes it. */
function fabricate(page, change) {
  const real = [...page.answers.values()].at(-1);
  return page.route("**/api/status", (route) => {
    const answer = structuredClone(real);
    answer.timestamp = new Date().toISOString();
    change(answer);
    return route.fulfill({ json: answer });
  });
}

/** Texts that stand out from what is behind them by less than 4.5 to 1 (WCAG AA): ["12.3 ms: 4.1", ...]. */
const faint = (page) => page.evaluate(() => {
  const parts = (colour) => colour.match(/[\d.]+/g).map(Number);
  const light = (colour) => {
    const [r, g, b] = parts(colour).slice(0, 3).map((n) => n / 255).map((n) => n <= 0.04045 ? n / 12.92 : ((n + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (node) => {
    const colour = getComputedStyle(node).backgroundColor;
    return (parts(colour)[3] ?? 1) === 1 || node.parentElement === null ? colour : behind(node.parentElement);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
  while (texts.nextNode()) {
    const node = texts.currentNode.parentElement, { visibility, color } = getComputedStyle(node);
    if (!texts.currentNode.data.trim() || !node.checkVisibility() || visibility === "hidden") continue;
    const [low, high] = [light(color), light(behind(node))].sort((a, b) => a - b), ratio = (high + 0.05) / (low + 0.05);
    if (ratio < 4.5) found.push(`${texts.currentNode.data.trim()}: ${ratio.toFixed(2)}`);
  }
  return found;
});

for (const front of ["lighttpd", "nginx"]) {
  describe(`behind ${front}`, () => {
    let world, page;
    before(async () => world = await startWorld(front));
    after(() => world.end());
    beforeEach(async () => page = await openPage(world));
    afterEach(() => page.context().close());

    test("numbers are those of the JSON", async () => {
      await world("create", 12);
      await refreshed(page, 2);
      const shown = await page.evaluate(() => ({
        of: document.querySelector("time").dateTime,
        totals: [...document.querySelectorAll("[data-total]")].map((n) => [n.dataset.total, n.innerText]),
        workers: [...document.querySelectorAll("[data-rows=workers] > li .pid")].map((n) => Number(n.innerText)),
        endpoints: [...document.querySelectorAll("[data-rows=endpoints] > tr")].map((n) =>
          [n.firstElementChild.innerText, n.lastElementChild.innerText]),
      }));
      const json = page.answers.get(shown.of);
      assert.ok(shown.totals.length > 40);
      for (const [where, number] of shown.totals) {
        const value = where.split(".").reduce((o, name) => o?.[name], json);
        assert.equal(number, Number.isFinite(value) ? value.toLocaleString("en") : "–", where);
      }
      assert.equal(json.sessions.created, 12);
      assert.deepEqual(shown.workers, json.workers.map((w) => w.pid));
      assert.deepEqual(shown.endpoints, json.endpoints.filter((e) => e.requests > 0)
        .map((e) => [e.path === "-" ? "no such path" : e.path, e.requests.toLocaleString("en")]));
      assert.equal(await text(page, "time"), `${shown.of.slice(11, 19)} UTC`);
      await shot(page, `${front}-light`);
    });

    test("the policy holds, and the page complains of nothing", async () => {
      await refreshed(page, 3);
      assert.deepEqual(page.complaints, []);
      await assert.rejects(page.addScriptTag({ content: "window.inline = 1" }), /Content Security Policy|TrustedScript|CSP/i);
      assert.equal(await page.evaluate(() => window.inline), undefined);
    });
  });
}

describe("the page", () => {
  let world, page;
  before(async () => world = await startWorld("nginx"));
  after(() => world.end());
  beforeEach(async () => page = await openPage(world));
  afterEach(() => page.context().close());

  test("updates arrive", async () => {
    const created = Number(await text(page, "td[data-total='sessions.created']"));
    await world("create", 5);
    await becomes(page, "td[data-total='sessions.created']", new RegExp(`^${created + 5}$`));
    await becomes(page, "td[data-rate='sessions.created']", /^[0-9.]*[1-9]/);
    await becomes(page, "[data-text=active]", new RegExp(`^${created + 5}$`));
    await becomes(page, "[data-text=p99]", / ms$/);
    assert.equal(await world("report", "gitlab", 80), 200);
    await becomes(page, "[data-rows=limits]", /gitlab global\s+80 %/);
    await becomes(page, "[data-rows=messages]", /rate_limit_sync\s+\S+\s+\d+\s+\d+ s ago\s+node-a\/worker/);
    assert.match(await text(page, "[data-rows=pods]"), /node-a[\s\S]*node-b|node-b[\s\S]*node-a/);
    assert.match(await text(page, "[data-text=leader]"), /^node-[ab]/);
  });

  test("a worker that was killed gives way to its successor", async () => {
    const [slot] = [...page.answers.values()].at(-1).workers;
    await world("kill", slot.pid);
    await page.waitForFunction((pid) => !document.querySelector("[data-rows=workers]").innerText.includes(pid), String(slot.pid));
    await becomes(page, "[data-text=workers]", /^(3 idle|2 idle, 1 busy|1 busy, 2 idle)$/);
    await becomes(page, "td[data-total='pool.restarts.signal']", /^[1-9]/);
  });

  test("says what each worker does, and what is wrong", async () => {
    await fabricate(page, (answer) => {
      const [busy, dead] = answer.workers;
      Object.assign(busy, { state: "busy", requests: 3, oldest: { method: "PATCH", path: "/api/sessions/*", ageMs: 42 } });
      Object.assign(dead, { state: "dead", oldest: null });
      answer.workers = [dead, busy]; // one has left, and their order is another
      Object.assign(answer, { status: "degraded", maintenance: true });
      answer.coordination.coordinator.subscribed = false;
      answer.store.breaker = null;
      for (const e of answer.endpoints) e.requests ||= 1;
      Object.assign(answer.pool, { busy: 1, dead: 1, idle: 1, waiting: 3000 });
      Object.assign(answer.cleanup, { last: new Date(Date.now() - 3 * 3600000).toISOString(),
        jobs: { pending: 4, running: 0, failed: 2 }, database: { status: "down", latencyMs: 200, ageMs: 1, sinceMs: 2 } });
      answer.rateLimits = [{ platform: "jira", endpoint: "global", limit: 1000, remaining: 40, usagePercent: null,
        retryAfterSeconds: 9, reset: null, updated: answer.timestamp }];
    });
    await becomes(page, "[data-rows=workers]", /busy with 3[\s\S]*PATCH \/api\/sessions\/\*\s+42\.0 ms/);
    assert.equal(await page.locator("[data-rows=workers] [data-is=dead] .state").innerText(), "dead");
    assert.equal(await page.locator("[data-rows=workers] [data-is=dead] .doing").innerText(), "not yet replaced");
    const last = [...page.answers.values()].at(-1).workers.map((w) => String(w.pid));
    assert.deepEqual(await page.locator("[data-rows=workers] .pid").allInnerTexts(), last);
    assert.equal(last.length, 2);
    assert.match(await text(page, "[data-text=workers]"), /1 idle, 1 busy, 1 dead/);
    assert.match(await text(page, "[data-rows=limits]"), /jira global\s+96 %\s+40\s+–/);
    await page.waitForSelector("[data-level=waiting][data-is=bad]");
    assert.equal(await text(page, "[data-text=database]"), "does not answer");
    assert.match(await text(page, "[role=status]"), /^Degraded: Redis answers, PostgreSQL is away, .*, in maintenance$/);
    assert.match(await text(page, "[data-text=coordinator]"), /^needs no others, /);
    assert.equal(await text(page, "[data-level=cleaned][data-is=warn] dd"), "3 h ago");
    assert.equal(await text(page, "[data-text=jobs]"), "4 pending, 2 failed");
    const cut = await page.evaluate(() => [...document.querySelectorAll(".scroll")]
      .filter((n) => n.scrollHeight > n.clientHeight).map((n) => n.getAttribute("aria-labelledby")));
    assert.deepEqual(cut, [], "all rows are seen");
    for (const colorScheme of ["dark", "light"]) {
      await page.emulateMedia({ colorScheme });
      assert.deepEqual(await faint(page), [], colorScheme);
    }
    await page.evaluate(() => document.querySelector("h1").style.color = "#999");
    assert.match((await faint(page)).join(), /^Hyperpage sessions: 2\.\d+$/, "and if it were faint, that would be seen");
    await shot(page, "trouble");
  });

  test("an outage of Redis shows, and its end", async () => {
    await world("hang_redis");
    await world("create", 1);
    await becomes(page, "[role=status]", /^Degraded: Redis is away, the refuge answers/);
    await becomes(page, "dd[data-text=breaker]", /^open for /);
    await shot(page, "refuge");
    await world("wake_redis");
    await becomes(page, "[role=status]", /^Healthy: Redis answers/);
    await becomes(page, "dd[data-text=breaker]", /^closed$/);
  });

  test("an outage of the pool shows as stale, and its end", async () => {
    await refreshed(page, 2);
    await world("stop_pool");
    await page.waitForSelector("body[data-stale=yes]");
    assert.match(await text(page, "[role=status]"), /^Stale: the web server says 50\d\. What you see is of /);
    assert.deepEqual(await faint(page), [], "what was seen last can be read");
    await shot(page, "stale");
    await world("start_pool");
    await page.waitForSelector("body[data-stale=no]");
    await becomes(page, "[role=status]", /^Healthy/);
    assert.deepEqual(page.complaints.filter((line) => !isOutage(line)), []);
  });

  test("an answer that never comes is stale too", async () => {
    await page.route("**/api/status", () => {}); // no answer
    await page.waitForSelector("body[data-stale=yes]");
    await page.unroute("**/api/status");
    await page.waitForSelector("body[data-stale=no]");
  });

  test("what is not understood is said, and is not taken for an outage", async () => {
    await refreshed(page);
    await fabricate(page, (answer) => delete answer.store);
    await page.waitForSelector("body[data-stale=yes]");
    assert.match(await text(page, "[role=status]"), /^Stale: this page does not understand the answer \(.*undefined.*\); load it again\./);
    await page.unroute("**/api/status");
    await page.waitForSelector("body[data-stale=no]");
  });

  test("what a lost coordinator knew last is not shown as if it were so", async () => {
    await becomes(page, "[data-text=leader]", /^node-[ab]/);
    await fabricate(page, (answer) => {
      answer.status = "degraded";
      answer.coordination.coordinator.alive = false;
    });
    await becomes(page, "[role=status]", /^Degraded: Redis answers, the coordinator is lost$/);
    assert.equal(await text(page, "[data-text=coordinator]"), "does not run");
    assert.equal(await text(page, "[data-text=leader]"), "nobody known");
    assert.equal(await text(page, "[data-text=term]"), "–");
    assert.equal(await page.locator("[data-rows=pods] > tr").count(), 0);
  });

  test("counters that begin anew give no negative rate", async () => {
    await refreshed(page, 2);
    await fabricate(page, (answer) => {
      for (const e of answer.endpoints) Object.assign(e, { requests: 0, buckets: e.buckets.map(() => 0) });
      answer.sessions.created = 0;
    });
    await becomes(page, "td[data-total='sessions.created']", /^0$/);
    assert.doesNotMatch(await text(page, "main"), /-\d|NaN|undefined|Infinity|null/);
  });

  test("nothing grows", async () => {
    const devtools = await page.context().newCDPSession(page);
    const measure = async () => {
      await devtools.send("HeapProfiler.collectGarbage");
      const { nodes, jsEventListeners } = await devtools.send("Memory.getDOMCounters");
      const { usedSize } = await devtools.send("Runtime.getHeapUsage");
      return { nodes, jsEventListeners, usedSize };
    };
    await page.clock.install();
    const pass = async (refreshes) => { // each as soon as the one before has been shown
      for (let i = 0; i < refreshes; i++) {
        const shown = page.waitForResponse("**/api/status");
        await page.clock.runFor(1000);
        await shown;
      }
    };
    await page.reload();
    page.answers = { set() {} }; // the test itself must not grow either
    await pass(20);
    const early = await measure();
    await pass(500); // more than the charts hold, and until the engine has compiled what it will
    const full = await measure();
    await pass(250);
    const late = await measure();
    const points = await page.locator("#chart-rate .line-0").getAttribute("d");
    assert.ok(points.match(/[ML]/g).length <= 180, "the chart holds three minutes");
    assert.ok(late.nodes <= early.nodes + 20, `nodes: ${early.nodes}, later ${late.nodes}`);
    assert.equal(late.jsEventListeners, early.jsEventListeners);
    assert.ok(late.usedSize <= full.usedSize + 60000, `bytes: ${early.usedSize}, with all points ${full.usedSize}, later ${late.usedSize}`);
    console.log(`nodes ${early.nodes}, ${full.nodes}, ${late.nodes}; bytes ${early.usedSize}, ${full.usedSize}, ${late.usedSize}`);
  });

  test("a time in which nobody answered is a gap in the charts", async () => {
    const line = async () => (await page.locator("#chart-rate .line-0").getAttribute("d")).split("M").slice(1);
    const right = (piece) => Number(piece.split("L").at(-1).split(" ")[0]);
    await page.clock.install();
    const pass = async (refreshes) => {
      for (; refreshes > 0; refreshes--) {
        const shown = page.waitForResponse("**/api/status");
        await page.clock.runFor(1000);
        await shown;
      }
    };
    await page.reload();
    await pass(6);
    assert.equal((await line()).length, 1);
    await page.route("**/api/status", (route) => route.abort());
    await page.clock.runFor(60000);
    await page.waitForSelector("body[data-stale=yes]");
    assert.ok(Math.abs(right((await line())[0]) - 667) < 40, "its end is a minute ago");
    await page.unroute("**/api/status");
    await pass(6);
    const [before, after, ...more] = await line();
    assert.deepEqual(more, []);
    assert.ok(right(before) < 680 && right(after) > 980, "and the line goes on now");
  });

  test("fits a phone, in the dark", async () => {
    const phone = await openPage(world, { viewport: { width: 390, height: 844 }, isMobile: true, colorScheme: "dark" });
    await refreshed(phone, 2);
    assert.equal(await phone.evaluate(() => document.documentElement.scrollWidth), 390);
    const cut = await phone.evaluate(() => [...document.querySelectorAll(".scroll, dl, .workers")]
      .filter((n) => n.scrollWidth > n.clientWidth).map((n) => n.getAttribute("aria-labelledby") ?? n.className));
    assert.deepEqual(cut, [], "all columns are seen");
    const [ground, ink] = await phone.evaluate(() => {
      const light = (colour) => colour.match(/\d+/g).slice(0, 3).reduce((sum, n) => sum + Number(n), 0) / 765;
      const style = getComputedStyle(document.body);
      return [light(style.backgroundColor), light(style.color)];
    });
    assert.ok(ground < 0.2 && ink > 0.8);
    await shot(phone, "phone-dark");
    await phone.context().close();
  });

  test("can be read aloud", async () => {
    await refreshed(page);
    for (const landmark of ["banner", "main", "contentinfo"]) assert.equal(await page.getByRole(landmark).count(), 1, landmark);
    assert.equal(await page.getByRole("status").count(), 1);
    for (const name of ["Workers", "Requests", "Sessions", "Store", "Cluster", "Messages", "Rate limits", "Cleanup and jobs"])
      assert.equal(await page.getByRole("region", { name }).count(), 1, name);
    assert.equal(await page.getByRole("img", { name: /^Requests a second: answered/ }).count(), 1);
    const wrong = await page.evaluate(() => [...document.querySelectorAll("table")].filter((table) =>
      table.querySelector("thead th:not([scope=col]), tbody tr > :first-child:not(th[scope=row])")).length);
    assert.equal(wrong, 0, "tables without headers");
    const ids = await page.evaluate(() => [...document.querySelectorAll("[aria-labelledby]")]
      .filter((n) => !document.getElementById(n.getAttribute("aria-labelledby"))).length);
    assert.equal(ids, 0, "labels that are not there");
    let spoken = 0; // the live region changes only with the state
    await page.exposeFunction("speak", () => spoken++);
    await page.evaluate(() => new MutationObserver(() => window.speak()).observe(document.querySelector("[role=status]"),
      { subtree: true, childList: true, characterData: true }));
    await refreshed(page, 3);
    assert.equal(spoken, 0);
  });
});
