// pages.mjs: a real Chromium visits the pages of a lab and of a Worker, as a person would.
//
// The story `pages::` starts both and calls this with its facts as JSON in the environment
// (`VISIT`). Whatever is wrong goes to standard error, and the exit code says so.
//
// Invariants that hold of every page, in two widths and two themes:
// - no error in the console, no request to another host, no request that fails;
// - axe-core finds nothing serious, and nothing is wider than the window;
// - every step works with the keyboard and the labels that a screen reader reads.

import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { mkdir, writeFile } from "node:fs/promises";
import { createRequire } from "node:module";
import { join } from "node:path";

const visit = JSON.parse(process.env.VISIT);
const require = createRequire(join(visit.modules, "node_modules", "x"));
const { chromium } = require("playwright-core");
const axe = readFileSync(require.resolve("axe-core/axe.min.js"), "utf8");

const WIDE = { width: 1200, height: 800 };
const PHONE = { width: 390, height: 844 };
const LOOKS = [
  { name: "wide-light", viewport: WIDE, colorScheme: "light" },
  { name: "wide-dark", viewport: WIDE, colorScheme: "dark" },
  { name: "phone-light", viewport: PHONE, colorScheme: "light" },
  { name: "phone-dark", viewport: PHONE, colorScheme: "dark" },
];

await mkdir(visit.pictures, { recursive: true });
const browser = await chromium.launch({
  executablePath: visit.chromium,
  args: [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
  ],
});

// A browser of its own: no cookie of another one.
async function open({ url = visit.url, ...options }) {
  const context = await browser.newContext({ baseURL: url, ...options });
  // A machine that builds and tests beside this takes its time.
  context.setDefaultTimeout(60_000);
  const page = await context.newPage();
  const faults = [];
  page.on("console", (message) => {
    if (["error", "warning"].includes(message.type())) faults.push(`console: ${message.text()}`);
  });
  page.on("pageerror", (error) => faults.push(`script: ${error}`));
  page.on("request", (request) => {
    if (!request.url().startsWith(url)) faults.push(`another host: ${request.url()}`);
  });
  page.on("response", (response) => {
    if (response.status() >= 400) faults.push(`${response.status()}: ${response.url()}`);
  });
  return { context, page, faults };
}

async function inspect(page, what) {
  await examine(page, what);
  const [inside, window] = await page.evaluate(() => [document.documentElement.scrollWidth, innerWidth]);
  assert.ok(inside <= window, `${what}: ${inside} pixels in a window of ${window}`);
}

async function examine(page, what) {
  await page.evaluate(axe);
  // What axe would fetch by itself, the page's policy forbids.
  const { violations } = await page.evaluate(() => window.axe.run(document, { preload: false }));
  const serious = violations.filter(({ impact }) => ["serious", "critical"].includes(impact));
  const told = serious.map(({ id, nodes }) => `${id}: ${nodes.map(({ html }) => html).join(" | ")}`);
  assert.deepEqual(told, [], `${what}: axe`);
}

// A picture for the docs: sixteen shades of each colour, which nobody tells from the screen, take
// half of the bytes.
async function keepForDocs(context, name, target) {
  const picture = await target.screenshot();
  const canvas = await context.newPage();
  const small = await canvas.evaluate(async (base64) => {
    const bytes = Uint8Array.from(atob(base64), (one) => one.charCodeAt(0));
    const image = await createImageBitmap(new Blob([bytes], { type: "image/png" }));
    const drawn = new OffscreenCanvas(image.width, image.height);
    const pen = drawn.getContext("2d");
    pen.drawImage(image, 0, 0);
    const pixels = pen.getImageData(0, 0, image.width, image.height);
    pixels.data.forEach((value, place, all) => { all[place] = Math.round(value / 17) * 17; });
    pen.putImageData(pixels, 0, 0);
    const blob = await drawn.convertToBlob({ type: "image/png" });
    return [...new Uint8Array(await blob.arrayBuffer())];
  }, picture.toString("base64"));
  await canvas.close();
  assert.ok(small.length <= 80_000, `${name} has ${small.length} bytes`);
  await writeFile(join(visit.pictures, `pages-${name}.png`), Buffer.from(small));
}

async function signIn(page) {
  await page.goto("/");
  await page.getByRole("link", { name: "Sign in" }).click();
  await page.getByLabel("Token").fill(visit.token);
  await page.getByRole("button", { name: "Sign in" }).click();
  await page.getByRole("button", { name: "Sign out" }).waitFor();
  assert.ok(!page.url().includes(".".concat(visit.token.split(".")[2])), "no token in an address");
}

// Finds a cache and copies its lines, without a token.
async function copyLines() {
  const { context, page, faults } = await open({ viewport: WIDE, permissions: ["clipboard-read", "clipboard-write"] });
  await page.goto("/");
  assert.equal(await page.getByRole("link", { name: "secret" }).count(), 0, "a private cache is not shown");
  // The first stop of the keyboard leads to the content.
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "Skip to content");
  await page.keyboard.press("Enter");
  await page.keyboard.press("Tab");
  assert.equal(await page.evaluate(() => document.activeElement.textContent), "main");
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: "main" }).waitFor();
  await page.getByRole("button", { name: "Copy the lines for nix.conf" }).click();
  await page.getByText("Copied").first().waitFor();
  const copied = await page.evaluate(() => navigator.clipboard.readText());
  assert.ok(copied.startsWith(`extra-substituters = ${visit.url}/main\nextra-trusted-public-keys = main:`), copied);
  assert.deepEqual(faults, []);
  await context.close();
}

// Searches, follows a reference, opens a file, pins a path, and signs out.
async function look() {
  const { context, page, faults } = await open({ viewport: WIDE });
  await signIn(page);
  const cookies = await context.cookies();
  assert.deepEqual(cookies.map(({ httpOnly, sameSite }) => [httpOnly, sameSite]), [[true, "Strict"]]);
  assert.equal(await page.evaluate(() => document.cookie), "", "no script reads the token");
  await page.getByRole("link", { name: "secret" }).click();
  await page.getByText("The cache is private").waitFor();
  await page.getByRole("link", { name: "Dormer", exact: true }).click();
  await page.getByRole("img", { name: /^From .* the paths grew from/ }).waitFor();
  await page.getByRole("link", { name: "main", exact: true }).click();
  await page.getByRole("img", { name: /^From .* the paths grew from/ }).waitFor();
  await page.getByRole("img", { name: /^NARs pulled: .* on the busiest day/ }).waitFor();
  await page.getByLabel("Find a path").fill(visit.program.name);
  await page.keyboard.press("Enter");
  // A rebuild has the same name.
  await page.locator(`tbody a[href$="/${visit.program.hash}"]`).click();
  await page.getByRole("heading", { level: 1, name: visit.program.name }).waitFor();
  await page.getByRole("link", { name: visit.reference.name }).click();
  await page.getByRole("heading", { level: 1, name: visit.reference.name }).waitFor();
  assert.ok(page.url().endsWith(`/main/${visit.reference.hash}`), page.url());
  await page.getByRole("heading", { name: "Needed by" }).waitFor();

  await page.goto(`/main/${visit.file.hash}`);
  await page.getByRole("link", { name: "Files", exact: true }).click();
  for (const name of visit.file.names) await page.locator("tbody").getByRole("link", { name }).click();
  await page.getByText(visit.file.text).waitFor();
  const [download] = await Promise.all([page.waitForEvent("download"), page.getByRole("link", { name: "Download" }).click()]);
  assert.ok(readFileSync(await download.path(), "utf8").includes(visit.file.text));

  await page.goto(`/main/${visit.program.hash}`);
  await page.getByLabel("Name of a pin").fill("release");
  await page.getByLabel("Days").fill("30");
  await page.getByRole("button", { name: "Pin this path" }).click();
  await page.getByText("The path is pinned.").waitFor();
  await page.getByRole("rowheader", { name: "release" }).waitFor();
  await page.goto("/main/pins");
  await page.getByRole("button", { name: "Remove the pin release" }).click();
  await page.getByText("The pin is removed.").waitFor();
  await page.getByText("Nothing is pinned.").waitFor();
  await page.goto(`/main/${visit.program.hash}`);
  await page.getByRole("link", { name: "Remove this path" }).click();
  await page.getByRole("link", { name: "Keep it" }).click();
  await page.getByRole("heading", { level: 1, name: visit.program.name }).waitFor();

  await page.getByRole("button", { name: "Sign out" }).click();
  await page.getByRole("link", { name: "Sign in" }).waitFor();
  assert.deepEqual(await context.cookies(), []);
  assert.deepEqual(faults, []);
  const after = await context.request.get("/secret/", { headers: { accept: "text/html" } });
  assert.equal(after.status(), 404);
  await context.close();
}

// A link of another site, such as a chat, leads to a private cache. The browser keeps the session
// back, and one click more shows the cache.
async function comeFromElsewhere() {
  const { context, page } = await open({ viewport: WIDE });
  await signIn(page);
  await page.goto(`data:text/html,<a href="${visit.url}/secret/">look</a>`);
  await page.getByRole("link", { name: "look" }).click();
  await page.getByRole("heading", { name: "Nothing here" }).waitFor();
  await inspect(page, "a page from elsewhere");
  await page.getByRole("link", { name: "Open this page again" }).click();
  await page.getByText("The cache is private").waitFor();
  assert.ok(page.url().endsWith("/secret/"), page.url());
  await context.close();
}

// The script only adds to the pages.
async function withoutScript() {
  const { context, page, faults } = await open({ viewport: PHONE, javaScriptEnabled: false });
  await signIn(page);
  await page.getByRole("link", { name: "main", exact: true }).click();
  await page.getByLabel("Find a path").fill(visit.program.hash);
  await page.getByRole("button", { name: "Search" }).click();
  await page.getByRole("heading", { level: 1, name: visit.program.name }).waitFor();
  assert.equal(await page.getByRole("button", { name: /^Copy/ }).count(), 0, "no button without a use");
  assert.deepEqual(faults, []);
  await context.close();
}

// Every page in one look.
async function see({ name, viewport, colorScheme }) {
  const { context, page, faults } = await open({ viewport, colorScheme });
  await signIn(page);
  const [program, longest] = [visit.program, visit.longest].map(({ hash }) => `/main/${hash}`);
  for (const [what, address] of [
    ["home", "/"],
    ["cache", "/main/"],
    ["paths", "/main/paths"],
    ["path", program],
    ["closure", `${program}/closure`],
    ["folder", `/main/${visit.file.hash}/files/`],
    ["file", `/main/${visit.file.hash}/files/${visit.file.names.join("/")}`],
    ["log", `${program}/log`],
    ["pins", "/main/pins"],
    ["remove", `${program}/remove`],
    ["sign-in", "/_dormer/sign-in"],
    // Words without a place where a line could end.
    ["longest", longest],
    ["longest-references", `${longest}/references?from=10`],
    ["longest-referrers", `/main/${visit.longest.needed}/referrers`],
    ["longest-remove", `/main/${visit.longest.needed}/remove`],
    ["longest-folder", `${longest}/files/`],
    ["longest-file", `${longest}/files/${"n".repeat(250)}/${"f".repeat(250)}`],
    ["longest-link", `${longest}/files/link`],
    ["longest-search", `/main/paths?q=${"w".repeat(200)}`],
    ["search-of-nothing", `/main/paths?q=${"x".repeat(300)}`],
  ]) {
    await page.goto(address);
    await inspect(page, `${name} ${what}`);
    await page.screenshot({ path: join(visit.pictures, `${name}-${what}.png`), fullPage: true });
  }
  // Small pictures, for docs/PAGES.md.
  const figure = (place) => page.locator("figure").nth(place);
  const small = {
    "wide-light": [
      ["cache", "/main/", page],
      ["savings", "/", figure(0)],
      ["growth", "/", figure(1)],
      ["closure", `${program}/closure`, figure(0)],
    ],
    "phone-dark": [["path", program, page]],
  };
  for (const [what, address, target] of small[name] ?? []) {
    await page.goto(address);
    await keepForDocs(context, what, target);
  }
  // The page of what is not there is a 404, which the browser also tells in its console.
  assert.deepEqual(faults, []);
  await page.goto("/none/");
  await inspect(page, `${name} none`);
  // Filters while somebody types, where there is enough to filter.
  await page.goto("/main/paths");
  const rows = page.locator("tbody tr");
  if ((await rows.count()) >= 8) {
    await page.getByLabel("Filter this page").fill(visit.program.name);
    assert.ok((await rows.filter({ visible: true }).count()) < (await rows.count()), "some are hidden");
  }
  // What a reader may not see.
  await context.clearCookies();
  await page.goto(`/main/paths?q=${"x".repeat(300)}`);
  await page.getByText("may not search by name").waitFor();
  await inspect(page, `${name} a search by a stranger`);
  await page.goto(`${program}/referrers`);
  await page.getByRole("heading", { name: "Forbidden" }).waitFor();
  await inspect(page, `${name} forbidden`);
  await context.close();
}

// The pages for operators: the plan of a collection, and a removal in the audit.
const OPERATOR_PAGES = ["", "jobs", "collection", "publishing", "damage", "audit"];

async function operate() {
  const { context, page, faults } = await open({ viewport: WIDE });
  const stranger = await context.request.get("/_dormer/", { headers: { accept: "text/html" } });
  assert.equal(stranger.status(), 404, "nothing is here for strangers");
  await signIn(page);
  await page.getByRole("link", { name: /^Operation/ }).click();
  await page.getByText("Database and object store answer.").waitFor();
  // The figures follow the server, until somebody wants them to stand still.
  const answered = page.locator("dt", { hasText: "Requests answered" }).locator("+ dd");
  const before = await answered.textContent();
  const glance = () => page.evaluate(() => document.dispatchEvent(new Event("visibilitychange")));
  await glance();
  await page.waitForFunction(([dd, text]) => dd.isConnected === false || dd.textContent !== text, [await answered.elementHandle(), before]);
  assert.notEqual(await answered.textContent(), before, "without a reload");
  await page.getByRole("button", { name: "Pause" }).click();
  await page.getByText("The figures stand still.").waitFor();
  const still = await answered.textContent();
  await glance();
  assert.equal(await answered.textContent(), still);
  await page.getByRole("button", { name: "Follow" }).click();
  await page.getByText("are read again every 5 seconds").waitFor();
  const tabs = page.getByRole("navigation", { name: "Pages for operators" });
  await tabs.getByRole("link", { name: "Collection" }).click();
  await page.getByRole("button", { name: "Make a plan" }).click();
  await page.getByText(/^Planned /).or(page.getByText(/^A plan is being made/)).first().waitFor();
  while ((await page.getByText(/^Planned /).count()) === 0) await page.reload();
  await page.getByRole("img", { name: /^Planned .* is needed where it is/ }).waitFor();
  assert.notEqual(await page.locator("[data-live]").getAttribute("data-live"), "", "the plan is this server's own");
  await tabs.getByRole("link", { name: "Audit" }).click();
  await page.getByLabel("Actor").fill("nobody");
  await page.getByRole("button", { name: "Filter" }).click();
  await page.getByText("Nothing here.").waitFor();
  assert.ok(page.url().includes("actor=nobody"), page.url());
  assert.deepEqual(faults, []);
  await context.close();
}

// A page that follows the server asks nothing while it is hidden, and less and less often while the
// answer is 503. It changes nothing under a selection, shows another server only when its own is
// gone, and ends with the session. The clock of the page is turned on by hand.
async function follow() {
  const { context, page } = await open({ viewport: WIDE });
  await signIn(page);
  // It stands still before the page is there: no timer of the page goes off by itself.
  const now = Date.now();
  await page.clock.install({ time: now });
  await page.clock.pauseAt(now + 60_000);
  await page.goto("/_dormer/");
  await page.evaluate(() => {
    const set = window.setTimeout;
    window.waits = 0;
    window.setTimeout = (...what) => {
      window.waits += 1;
      return set(...what);
    };
  });
  // Does something that ends in an answer, and waits until the page waits for its next turn: a
  // clock that goes on earlier is ahead of that turn.
  const untilItWaits = async (act) => {
    const before = await page.evaluate(() => window.waits);
    await act();
    await page.waitForFunction((count) => window.waits > count, before);
  };
  let asked = 0;
  page.on("request", (request) => { asked += request.url().endsWith("/_dormer/") ? 1 : 0; });
  const note = (text) => page.locator("p.live", { hasText: text }).waitFor();
  // Nothing is asked in the first seconds, and one question comes in the next two.
  const asksOnceAfter = async (seconds, what) => {
    asked = 0;
    await page.clock.runFor((seconds - 1) * 1000);
    assert.equal(asked, 0, `${what}: too early`);
    const answered = page.waitForResponse((response) => response.url().endsWith("/_dormer/"));
    await page.clock.runFor(2000);
    await answered;
    assert.equal(asked, 1, what);
  };
  const asksAfter = (seconds, what) => untilItWaits(() => asksOnceAfter(seconds, what));
  const hide = (isHidden) =>
    page.evaluate((value) => {
      Object.defineProperty(document, "hidden", { configurable: true, get: () => value });
      document.dispatchEvent(new Event("visibilitychange"));
    }, isHidden);
  const comeBack = async () => {
    const answered = page.waitForResponse((response) => response.url().endsWith("/_dormer/"));
    await untilItWaits(async () => {
      await hide(false);
      await answered;
    });
    await note("are read again every 5 seconds");
  };
  await comeBack();
  await asksAfter(5, "a page that is seen");

  await hide(true);
  asked = 0;
  await page.clock.runFor(300_000);
  assert.equal(asked, 0, "a hidden page asks nothing");
  await comeBack();

  // What a proxy answers while the server restarts.
  await page.route("**/_dormer/", (route) => route.fulfill({ status: 503, body: "" }));
  await asksAfter(5, "before the first failure");
  for (const pause of [10, 20, 40, 60, 60]) {
    await note(`No answer. The next try is in ${pause} seconds.`);
    await asksAfter(pause, `after ${pause} seconds without an answer`);
  }
  await page.unroute("**/_dormer/");
  await note("No answer. The next try is in 60 seconds.");
  await asksAfter(60, "the server is back");
  await note("are read again every 5 seconds");
  await asksAfter(5, "as ever");

  const answered = page.locator("dt", { hasText: "Requests answered" }).locator("+ dd");
  const changes = (before) => page.waitForFunction(([dd, text]) => !dd.isConnected || dd.textContent !== text, before);
  const seen = async () => [await answered.elementHandle(), await answered.textContent()];
  await answered.evaluate((dd) => window.getSelection().selectAllChildren(dd));
  const selected = await seen();
  await asksAfter(5, "with a selection");
  await asksAfter(5, "with a selection still");
  assert.equal(await answered.textContent(), selected[1], "nothing changes under a selection");
  await page.evaluate(() => window.getSelection().removeAllRanges());
  await asksAfter(5, "without a selection");
  await changes(selected);

  // Behind a load balancer, another server answers.
  const shown = () => page.locator("[data-live]").getAttribute("data-live");
  const own = await shown();
  await page.route("**/_dormer/", async (route) => {
    const answer = await route.fetch();
    await route.fulfill({ response: answer, body: (await answer.text()).replaceAll(own, "another server") });
  });
  const ownFigures = await seen();
  for (let turn = 1; turn <= 5; turn += 1) await asksAfter(5, `another server, turn ${turn}`);
  assert.deepEqual([await shown(), await answered.textContent()], [own, ownFigures[1]], "the page keeps its server");
  await asksAfter(5, "its server is gone");
  await page.getByText("another server, version").waitFor();
  assert.equal(await shown(), "another server");
  await page.unroute("**/_dormer/");

  await page.route("**/_dormer/", (route) => route.fulfill({ status: 404, body: "" }));
  await asksOnceAfter(5, "before the end of the session");
  await note("The session has ended: sign in again.");
  asked = 0;
  await page.clock.runFor(300_000);
  assert.equal(asked, 0, "an ended session asks nothing");
  await context.close();
}

async function seeOperation({ name, viewport, colorScheme }) {
  const { context, page, faults } = await open({ viewport, colorScheme });
  await signIn(page);
  for (const what of OPERATOR_PAGES) {
    await page.goto(`/_dormer/${what}`);
    await inspect(page, `${name} operator ${what}`);
    await page.screenshot({ path: join(visit.pictures, `${name}-operator-${what || "overview"}.png`), fullPage: true });
  }
  assert.deepEqual(faults, []);
  await context.close();
}

// The same on the Worker, as far as it has published documents: finds a path, follows a reference,
// and opens a file.
async function seeEdge({ name, viewport, colorScheme }) {
  const { context, page, faults } = await open({ url: visit.edge, viewport, colorScheme });
  const seen = async (what) => {
    await inspect(page, `${name} edge ${what}`);
    await page.screenshot({ path: join(visit.pictures, `${name}-edge-${what}.png`), fullPage: true });
  };
  await page.goto("/");
  assert.equal(await page.getByRole("link", { name: "secret" }).count(), 0, "a private cache is not shown");
  assert.equal(await page.getByRole("link", { name: "Sign in" }).count(), 0, "the edge knows no sessions");
  await seen("home");
  await page.getByRole("link", { name: "main", exact: true }).click();
  await page.getByText(`extra-substituters = ${visit.edge}/main`).first().waitFor();
  await seen("cache");
  await page.getByLabel("Find a path").fill("no such path");
  await page.keyboard.press("Enter");
  await page.getByText("This is no hash").waitFor();
  await seen("paths");
  await page.getByLabel("Find a path").fill(`/nix/store/${visit.program.hash}-${visit.program.name}/bin`);
  await page.keyboard.press("Enter");
  await page.getByRole("heading", { level: 1, name: visit.program.name }).waitFor();
  await seen("path");
  await page.getByRole("link", { name: visit.reference.name }).click();
  await page.getByRole("heading", { level: 1, name: visit.reference.name }).waitFor();
  await page.goBack();
  await page.getByRole("link", { name: "Build log" }).click();
  await page.getByText("2 tests were skipped").waitFor();
  await seen("log");
  await page.goto(`/main/${visit.file.hash}`);
  await page.getByRole("link", { name: "Files", exact: true }).click();
  await page.getByRole("rowheader", { name: visit.file.names[0] }).waitFor();
  await seen("folder");
  for (const name of visit.file.names) await page.locator("tbody").getByRole("link", { name }).click();
  await page.getByText("nix store cat").waitFor();
  await seen("file");
  assert.deepEqual(faults, []);
  await page.goto("/secret/");
  await page.getByRole("heading", { name: "Nothing here" }).waitFor();
  await seen("none");
  await context.close();
}

try {
  await copyLines();
  await look();
  await comeFromElsewhere();
  await withoutScript();
  await operate();
  await follow();
  await Promise.all(LOOKS.map(seeOperation));
  await Promise.all(LOOKS.map(see));
  await Promise.all(LOOKS.map(seeEdge));
} finally {
  await browser.close();
}
