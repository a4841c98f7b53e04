// Draws what /v1/status says every second (and /v1/workers where there are more workers than one), and
// candles as /v1/stream pushes them. Text from the network is only ever set as text, never as markup.
const EVERY_MS = 1000;
const CANDLES = 60;
const GAPS = 100;
const GAPS_EVERY_MS = 5000;
// The stream sends something every 10 s; who says nothing for longer is gone.
const SILENT_MS = 25000;
const $ = (id) => document.getElementById(id);
const given = document.querySelector('meta[name="k2-key"]').content;
let key = sessionStorage.getItem("k2-key") || given;
let symbol = null;
let before = null;
let told = new Map();
let following = new AbortController();

// The data of an answer; null where there is nothing (404).
async function ask(path) {
  const headers = key ? { "X-API-Key": key } : {};
  const answer = await fetch(path, { headers, signal: AbortSignal.timeout(5000) });
  if (answer.status === 401 || answer.status === 403) {
    $("key-form").hidden = false;
    throw new Error("an API key is needed");
  }
  const content = await answer.json();
  if (answer.status === 404) return null;
  if (!answer.ok) throw new Error(content.detail?.message ?? `status ${answer.status}`);
  return content.data;
}

const number = (value) => Number(value ?? 0).toLocaleString("en", { maximumFractionDigits: 1 });

function cell(tag, text, name = "") {
  const made = document.createElement(tag);
  made.textContent = text;
  if (name) made.className = name;
  return made;
}

function rows(id, values) {
  $(id).replaceChildren(...values.map((cells) => {
    const row = document.createElement("tr");
    row.append(...cells);
    return row;
  }));
}

function badge(id, text, kind) {
  $(id).textContent = text;
  $(id).className = `badge ${kind}`;
}

function rates(status, nowMs) {
  const totals = {
    source: status.source.frames, validate: status.validate.records, sink: status.sink.rows,
  };
  const per = {};
  if (before && nowMs > before.atMs) {
    for (const [name, total] of Object.entries(totals)) {
      // A restarted worker counts from nothing again.
      per[name] = Math.max(0, (total - before.totals[name]) * 1000 / (nowMs - before.atMs));
    }
  }
  before = { totals, atMs: nowMs };
  return per;
}

// What other workers say is some seconds old: what each has done is over the time between its words.
function ratesOfAll(workers) {
  const names = { source: "frames", validate: "records", sink: "rows" };
  const per = { source: 0, validate: 0, sink: 0 };
  told = new Map(workers.map((one) => {
    const old = told.get(one.worker);
    if (old?.at_us === one.at_us) return [one.worker, old];
    const heard = { ...one, per: {} };
    for (const [name, counter] of Object.entries(names)) {
      heard.per[name] = old
        ? Math.max(0, (one[counter] - old[counter]) * 1e6 / (one.at_us - old.at_us)) : 0;
    }
    return [one.worker, heard];
  }));
  for (const one of told.values()) for (const name of Object.keys(per)) per[name] += one.per[name];
  return per;
}

// With one worker the page shows what it says of itself, with more of them what they add up to.
function ofAll(status, workers) {
  const total = status.cluster;
  const sessions = workers.flatMap(
    (one) => one.sessions.map((feed) => ({ ...feed, worker: one.worker, at_us: one.at_us })));
  return {
    ...status, lag: total.lag, source: { ...status.source, ...total, sessions },
    validate: { ...status.validate, ...total }, sink: { ...status.sink, ...total },
  };
}

function drawWorkers(workers) {
  $("others").hidden = !workers;
  if (!workers) return;
  $("workers-count").textContent = workers.length;
  rows("workers", workers.map((one) => [
    cell("td", one.worker), cell("td", one.roles.join(", ")),
    cell("td", one.level, one.level === "NORMAL" ? "good" : "warn"),
    cell("td", number(one.lag), "n"), cell("td", `${number(100 * one.memory)} %`, "n"),
    cell("td", one.here ? "now" : `${number(one.age_s)} s ago`, "n"),
  ]));
}

function memoryOf(status, workers) {
  if (!workers) {
    return [`${number(status.memory.rss_mb)} MB`,
      `${number(100 * status.degradation.memory_fraction)} % of the limit`];
  }
  const fullest = Math.max(...workers.map((one) => one.memory));
  return [`${number(100 * fullest)} %`, `of its limit, the fullest of ${workers.length}`];
}

function drawStages(status, per, workers) {
  const stages = [
    ["Source", `${number(per.source)} frames/s`, `${number(status.source.queued)} queued`],
    ["Validate", `${number(per.validate)} records/s`, `${number(status.lag)} behind`],
    ["Sink", `${number(per.sink)} rows/s`, `${number(status.sink.pending_rows)} waiting`],
    ["Memory", ...memoryOf(status, workers)],
  ];
  $("stages").replaceChildren(...stages.map(([name, rate, more]) => {
    const stage = document.createElement("li");
    stage.append(cell("b", name), cell("div", rate), cell("div", more, "note"));
    return stage;
  }));
}

function drawSymbols(symbols) {
  if (!symbol && symbols.length) symbol = symbols[0].symbol;
  const focused = document.activeElement?.dataset?.symbol;
  rows("symbols", symbols.map((one) => {
    const pick = cell("button", one.symbol);
    pick.dataset.symbol = one.symbol;
    pick.setAttribute("aria-pressed", String(one.symbol === symbol));
    pick.addEventListener("click", () => { symbol = one.symbol; following.abort(); });
    const name = document.createElement("td");
    name.append(pick);
    return [name, cell("td", one.last_price ?? "", "n"), cell("td", number(one.trades_per_s), "n"),
      cell("td", number(one.quotes_per_s), "n")];
  }));
  // The rows are new; whoever was on one with the keyboard stays there.
  if (focused) document.querySelector(`button[data-symbol="${CSS.escape(focused)}"]`)?.focus();
}

// What the level puts off, in words: a colour alone says nothing to whoever cannot see it.
function drawShedding(status) {
  const { level, name, meaning, reason } = status.degradation;
  const waiting = status.validate.shed_pending;
  $("shedding").hidden = level === 0 && !waiting;
  const text = `${name}: ${meaning}${reason ? ` (${reason})` : ""}.` +
    (waiting ? ` ${number(waiting)} records put off will still be stored.` : "");
  if ($("shedding").textContent !== text) $("shedding").textContent = text;
}

function drawAnomalies(feeds) {
  const found = feeds.flatMap((feed) => feed.anomalies.map((one) => ({ feed, ...one }))).slice(-5);
  $("anomalies").replaceChildren(...found.reverse().map((one) => cell("li",
    `${one.symbol} on ${one.feed.exchange}: ${one.price}, ` + (one.kind === "jump"
      ? `a jump of ${number(100 * one.by)} %` : `${number(one.by)} standard deviations away`))));
}

async function drawGaps() {
  const gaps = (await ask(`/v1/gaps?state=open&limit=${GAPS}`)) ?? [];
  $("gaps-count").textContent = gaps.length < GAPS ? gaps.length : `${GAPS} or more`;
  rows("gaps", gaps.slice(0, 8).map((gap) => [cell("td", gap.symbol), cell("td", gap.exchange),
    cell("td", number(gap.missing), "n"), cell("td", String(gap.expected), "n")]));
}

async function drawAll() {
  const own = await ask("/v1/status");
  const workers = own.cluster.workers > 1 ? await ask("/v1/workers") : null;
  drawWorkers(workers);
  drawStatus(workers ? ofAll(own, workers) : own, workers, Date.now());
}

function drawStatus(status, workers, nowMs) {
  const per = workers ? ratesOfAll(workers) : rates(status, nowMs);
  $("version").textContent = `${status.version} · ${status.environment}`;
  const level = status.degradation.level;
  badge("level", status.degradation.name, level === 0 ? "good" : level < 3 ? "warn" : "bad");
  $("level").title = status.degradation.meaning;
  drawShedding(status);
  const fresh = status.freshness_ms ?? {};
  badge("freshness", `fresh within ${number(fresh.p50)} / ${number(fresh.p99)} ms`, "");
  drawStages(status, per, workers);
  drawSymbols(status.symbols);
  rows("lake", Object.entries(status.sink.tables).map(([name, table]) => [
    cell("td", name), cell("td", number(status.lake[name] ?? table.rows), "n"),
    // Commits are this worker's own; one without the role has no say.
    cell("td", workers && !table.commits ? "" : number(table.commits), "n"), cell("td", number(status.lake_files[name]), "n"),
    cell("td", table.last_commit_ms == null ? "" : `${number(table.last_commit_ms)} ms`, "n"),
  ]));
  rows("feeds", status.source.sessions.map((feed) => {
    // Of another worker's session: when it last said so.
    const atUs = feed.at_us ?? nowMs * 1000;
    const silentS = feed.last_frame_us ? (atUs - feed.last_frame_us) / 1e6 : null;
    const reconnects = Object.values(feed.reconnects).reduce((sum, one) => sum + one, 0);
    const session = cell("td", feed.session);
    if (feed.worker) session.title = `on ${feed.worker}`;
    return [session,
      cell("td", feed.state, feed.state === "connected" ? "good" : "bad"),
      cell("td", number(feed.frames), "n"),
      cell("td", silentS == null ? "" : `${number(Math.max(0, silentS))} s`, "n"),
      cell("td", number(reconnects), "n")];
  }));
  const facts = {
    "Duplicates dropped": status.validate.duplicates, "Late records": status.validate.late,
    [workers ? "Gaps opened" : "Gaps opened here"]: status.validate.gaps_opened,
    "Dead letters": status.validate.dead_letters, "Frames refused": status.source.refused,
    "Put off, still waiting": status.validate.shed_pending,
  };
  for (const feed of status.quality ?? []) {
    facts[`${feed.exchange} ${feed.data_type}, of 100`] = feed.score;
  }
  drawAnomalies(status.quality ?? []);
  $("quality").replaceChildren(...Object.entries(facts).flatMap(
    ([name, value]) => [cell("dt", name), cell("dd", number(value))]));
}

function shape(name, attributes) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key_, value] of Object.entries(attributes)) made.setAttribute(key_, value);
  return made;
}

// The messages of a stream of server-sent events: [event, data] each.
async function* messages(body) {
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (let text = ""; ;) {
    const { value, done } = await reader.read();
    if (done) return;
    const whole = (text + value).split("\n\n");
    text = whole.pop();
    for (const one of whole) {
      const [event, data] = one.split("\n");
      yield [event.slice("event: ".length), JSON.parse(data.slice("data: ".length))];
    }
  }
}

// Candles of the chosen symbol, until another is chosen: the newest ones, then each as it changes.
async function followCandles() {
  const wanted = symbol;
  following = new AbortController();
  const query = new URLSearchParams(
    { data_type: "candles", timeframe: "1m", symbols: wanted, snapshot: CANDLES });
  const headers = key ? { "X-API-Key": key } : {};
  let silent = setTimeout(() => following.abort(), SILENT_MS);
  try {
    const answer = await fetch(`/v1/stream?${query}`, { headers, signal: following.signal });
    if (!answer.ok) throw new Error(`status ${answer.status}`);
    const known = new Map();
    for await (const [event, body] of messages(answer.body)) {
      clearTimeout(silent);
      silent = setTimeout(() => following.abort(), SILENT_MS);
      if (event === "snapshot") known.clear();
      for (const one of body.data ?? []) known.set(`${one.exchange} ${one.window_start}`, one);
      if (body.data) drawCandles(wanted, known);
    }
  } finally {
    clearTimeout(silent);
  }
}

async function followForever() {
  for (;;) {
    const chosen = symbol;
    // What is wrong the status says as well; it asks for the key, too.
    if (chosen) await followCandles().catch(() => null);
    if (symbol === chosen) await new Promise((wake) => setTimeout(wake, EVERY_MS));
  }
}

function drawCandles(wanted, known) {
  $("chart-symbol").textContent = wanted;
  const start = (one) => Date.parse(one.window_start);
  const newestFirst = [...known.values()].sort((one, other) => start(other) - start(one));
  if (!newestFirst.length) return;
  for (const old of newestFirst.splice(4 * CANDLES)) {
    known.delete(`${old.exchange} ${old.window_start}`);
  }
  // Of a symbol on several exchanges, the one that traded last.
  const candles = newestFirst.filter((one) => one.exchange === newestFirst[0].exchange)
    .slice(0, CANDLES).reverse();
  const high = Math.max(...candles.map((one) => +one.high));
  const low = Math.min(...candles.map((one) => +one.low));
  const y = (price) => 265 - ((price - low) / (high - low || 1)) * 250;
  // Drawn in the pixels there are, or text would be stretched with the rest.
  const wide = Math.max(240, $("chart").clientWidth);
  $("chart").setAttribute("viewBox", `0 0 ${wide} 280`);
  const right = wide - 80;
  const step = right / CANDLES;
  const last = start(candles.at(-1));
  const drawn = candles.flatMap((one) => {
    const x = right - ((last - start(one)) / 60000 + 0.5) * step;
    const way = +one.close >= +one.open ? "up" : "down";
    const top = Math.min(y(+one.open), y(+one.close));
    const body = Math.max(1, Math.abs(y(+one.open) - y(+one.close)));
    return [shape("line", { class: way, x1: x, x2: x, y1: y(+one.high), y2: y(+one.low) }),
      shape("rect", { class: way, x: x - step * 0.35, width: step * 0.7, y: top, height: body })];
  });
  const labels = [low, (low + high) / 2, high].flatMap((price) => {
    const label = shape("text", { x: right + 6, y: y(price) + 4 });
    label.textContent = price.toPrecision(7);
    return [shape("line", { class: "grid", x1: 0, x2: right, y1: y(price), y2: y(price) }), label];
  });
  $("chart").replaceChildren(...labels, ...drawn);
  const final = candles.at(-1);
  $("chart-price").textContent = final.close.replace(/(\.\d*?)0+$/, "$1").replace(/\.$/, "");
  $("chart-text").textContent = `${candles.length} ${candles.length === 1 ? "minute" : "minutes"} up to ` +
    `${new Date(last).toISOString().slice(0, 16).replace("T", " ")} UTC; the last one: open ` +
    `${final.open}, high ${final.high}, low ${final.low}, close ${final.close}.`;
}

async function forever(work, everyMs) {
  for (;;) {
    try {
      await work();
      badge("link", "live", "good");
    } catch (error) {
      badge("link", `no answer: ${error.message}`, "bad");
    }
    await new Promise((wake) => setTimeout(wake, document.hidden ? 5 * everyMs : everyMs));
  }
}

$("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  key = $("key").value;
  sessionStorage.setItem("k2-key", key);
  $("key-form").hidden = true;
});
forever(drawAll, EVERY_MS);
followForever();
(async () => {
  for (;;) {
    // That nothing answers, the status says.
    if (!document.hidden) await drawGaps().catch(() => null);
    await new Promise((wake) => setTimeout(wake, GAPS_EVERY_MS));
  }
})();
