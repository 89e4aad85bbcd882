// Opens a page in Chromium and prints what a test wants to know of it, as JSON.
//
//   node browser.js inspect URL            layout, console, values and axe-core, wide, narrow and dark
//   node browser.js refresh URL            the reader's place before and after the page refreshes itself
//   node browser.js screenshot URL WIDTH HEIGHT light|dark FILE
//
// NODE_PATH has playwright-core and axe-core; CHROMIUM is the browser.
const fs = require("fs");
const { chromium } = require("playwright-core");

const FLAGS = [
  "--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
  "--disable-component-update", "--disable-sync",
];
const VIEWS = { wide: [1280, 900, "light"], narrow: [390, 844, "light"], dark: [1280, 900, "dark"] };

async function open(browser, url, [width, height, scheme], options) {
  const context = await browser.newContext({ viewport: { width, height }, colorScheme: scheme, ...options });
  const page = await context.newPage();
  const messages = [];
  page.on("console", (message) => messages.push(message.text()));
  page.on("pageerror", (error) => messages.push(String(error)));
  page.on("requestfailed", (request) => messages.push(`failed: ${request.url()}`));
  const requests = [];
  page.on("request", (request) => requests.push(request.url()));
  await page.goto(url, { timeout: 100000 });
  return { page, messages, requests };
}

function readLayout() {
  const text = (element) => element.textContent.replace(/\s+/g, " ").trim();
  const all = (selector) => [...document.querySelectorAll(selector)];
  return {
    title: document.title,
    text: text(document.body),
    overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
    values: all("data").map((data) => ({ metric: data.title, value: data.value, shown: text(data) })),
    cards: all("figcaption > b").map(text),
    headings: all("h1, h2, h3").map((heading) => [heading.tagName, text(heading)]),
    scripts: document.scripts.length,
    images: all("svg[role=img]").length,
    background: getComputedStyle(document.body).backgroundColor,
  };
}

async function inspect(browser, url) {
  const result = {};
  for (const [name, view] of Object.entries(VIEWS)) {
    const { page, messages, requests } = await open(browser, url, view);
    result[name] = { ...(await page.evaluate(readLayout)), messages, requests };
    await page.context().close();
    // axe-core is a script, which the page's own policy forbids.
    const checked = await open(browser, url, view, { bypassCSP: true });
    await checked.page.evaluate(fs.readFileSync(require.resolve("axe-core"), "utf8"));
    const axe = await checked.page.evaluate(() => window.axe.run());
    const found = [...axe.violations, ...axe.incomplete.filter((rule) => rule.id !== "color-contrast")];
    result[name].axe = found.map((rule) => [rule.id, rule.nodes.map((node) => node.html)]);
    result[name].axe_passes = axe.passes.length;
    await checked.page.context().close();
  }
  return result;
}

/** Scrolls, waits until the page has been loaded anew, and reads the place. */
async function refresh(browser, url) {
  const { page, requests } = await open(browser, url, VIEWS.narrow);
  const place = () => page.evaluate(() => ({ y: window.scrollY, loaded: performance.timeOrigin, url: location.href }));
  await page.evaluate(() => window.scrollTo(0, 1000));
  const before = await place();
  await page.waitForFunction((loaded) => performance.timeOrigin > loaded + 1, before.loaded, { timeout: 100000 });
  await page.waitForFunction((y) => window.scrollY === y, before.y, { timeout: 20000 }).catch(() => {});
  return { before, after: await place(), requests };
}

async function screenshot(browser, url, width, height, scheme, file) {
  const { page } = await open(browser, url, [Number(width), Number(height), scheme]);
  await page.screenshot({ path: file });
  return {};
}

(async () => {
  const [command, ...rest] = process.argv.slice(2);
  const browser = await chromium.launch({ executablePath: process.env.CHROMIUM, args: FLAGS });
  try {
    console.log(JSON.stringify(await { inspect, refresh, screenshot }[command](browser, ...rest)));
  } finally {
    await browser.close();
  }
})();
