/**
 * Drives a browser for a test in another language: one JSON object a line in, one out, each with the `id` of its call.
 *
 * `node bridge.mjs chromium|firefox EXECUTABLE`. What a page says on its console, and errors that nobody caught, come as
 * `{page, console}` lines of their own.
 */

import { createInterface } from "node:readline";
import puppeteer from "puppeteer-core";

const [kind, executablePath] = process.argv.slice(2);
const CHROMIUM_ARGUMENTS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
  "--no-first-run",
];

const browser = await puppeteer.launch({
  browser: kind === "firefox" ? "firefox" : "chrome",
  executablePath,
  headless: true,
  args: kind === "firefox" ? [] : CHROMIUM_ARGUMENTS,
});
/** @type {Map<number, any>} */
const pages = new Map();
/** @type {Map<number, any>} incognito contexts by number */
const contexts = new Map();
let numbers = 0;

/** @param {object} line */
const say = (line) => process.stdout.write(`${JSON.stringify(line)}\n`);

/** What a call does, by its name. @type {Record<string, (call: any) => Promise<any>>} */
const CALLS = {
  async context() {
    const number = ++numbers;
    contexts.set(number, await browser.createBrowserContext());
    return number;
  },
  async page({ context }) {
    const number = ++numbers;
    const page = await (context ? contexts.get(context) : browser).newPage();
    pages.set(number, page);
    page.on("console", (message) => say({ page: number, console: `${message.type()}: ${message.text()}` }));
    page.on("pageerror", (error) => say({ page: number, console: `uncaught: ${error.message}` }));
    return number;
  },
  async goto({ page, url }) {
    const answer = await pages.get(page).goto(url);
    return answer ? answer.status() : null;
  },
  /** Calls the function whose source is `script` with `argument`, and returns what its promise resolves with. */
  async run({ page, script, argument }) {
    return pages.get(page).evaluate(`(${script})(${JSON.stringify(argument ?? null)})`);
  },
  async files({ page, selector, paths }) {
    const input = await pages.get(page).$(selector);
    await input.uploadFile(...paths);
  },
  async cookie({ page, cookie }) {
    await pages.get(page).setCookie(cookie);
  },
  /** Chromium only: "frozen" or "active". */
  async lifecycle({ page, state }) {
    const session = await pages.get(page).createCDPSession();
    await session.send("Page.setWebLifecycleState", { state });
    await session.detach();
  },
  async screenshot({ page, path, width, height, dark }) {
    const target = pages.get(page);
    await target.setViewport({ width, height });
    await target.emulateMediaFeatures([{ name: "prefers-color-scheme", value: dark ? "dark" : "light" }]);
    await target.screenshot({ path, fullPage: true });
  },
  async reload({ page }) {
    await pages.get(page).reload();
  },
  async close({ page }) {
    await pages.get(page).close();
    pages.delete(page);
  },
  async pid() {
    return browser.process()?.pid ?? null;
  },
};

say({ ready: await browser.version() });
for await (const line of createInterface({ input: process.stdin })) {
  const { id, call, ...rest } = JSON.parse(line);
  // Not awaited: a page that waits must not hold up another.
  CALLS[call](rest).then(
    (result) => say({ id, result: result ?? null }),
    (error) => say({ id, error: String(error?.message ?? error) }),
  );
}
await browser.close();
