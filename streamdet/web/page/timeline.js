/* What happened on each stream over ten minutes to a week: how many objects of each label, alerts, outages and gaps. */

const ROW_HEIGHT = 28;
const REFRESH_MILLISECONDS = { minutes: 5000, hour: 10000, quarter: 20000, day: 60000, week: 60000 };
const SPAN_WORDS = { minutes: "10 minutes", hour: "hour", quarter: "6 hours", day: "24 hours", week: "7 days" };
/** Where no one has chosen a span and no more is kept, the shortest one is shown. */
const SHORTEST_SECONDS = 600;
const ALERT_COLOUR = "#ff8d85";
const DOWN_COLOUR = "#e5484d";
const REST_COLOUR = "#6e7b8b";
const GAP_COLOUR = "#2b3441";

const timeline = { span: "hour", isChosen: false, answer: null, rows: new Map(), timer: 0, choose: (_stream, _since, _until) => {} };

/** @param {(stream: string, since: number, until: number) => void} choose when someone picks a step */
function initTimeline(choose) {
  timeline.choose = choose;
  timeline.isChosen = kept.get("span", "") in REFRESH_MILLISECONDS;
  timeline.span = timeline.isChosen ? kept.get("span", "") : "hour";
  for (const button of document.querySelectorAll("[data-span]")) {
    button.addEventListener("click", () => {
      timeline.span = button.dataset.span;
      timeline.isChosen = true;
      kept.set("span", timeline.span);
      refreshTimeline();
    });
  }
  new ResizeObserver(drawTimeline).observe(byId("timeline-rows"));
}

/** Asks again now, and from now on in time. */
async function refreshTimeline() {
  clearTimeout(timeline.timer);
  const { span } = timeline;
  for (const button of document.querySelectorAll("[data-span]")) setAttribute(button, "aria-pressed", String(button.dataset.span === span));
  const answer = await getJson(`/api/timeline?span=${span}`);
  if (span !== timeline.span || address.name !== "review") return;
  const fitting = answer && fittingSpan(answer);
  if (fitting && fitting !== span) {
    timeline.span = fitting;
    return refreshTimeline();
  }
  if (answer) {
    timeline.answer = answer;
    showTimeline();
  }
  clearTimeout(timeline.timer); // that of another request, which was answered meanwhile
  const timer = setTimeout(async () => {
    await untilVisible();
    if (timer === timeline.timer) refreshTimeline();
  }, REFRESH_MILLISECONDS[span]);
  timeline.timer = timer;
  return undefined;
}

/** The span to show, as someone has chosen it, or as much is kept. */
function fittingSpan({ problem, until, kept_since: since }) {
  if (timeline.isChosen) return timeline.span;
  return !problem && (since === null || until - since <= SHORTEST_SECONDS) ? "minutes" : "hour";
}

function stopTimeline() {
  clearTimeout(timeline.timer);
  timeline.timer = 0;
}

function showTimeline() {
  const { answer } = timeline;
  const { problem } = answer;
  byId("timeline-rows").parentElement.classList.toggle("none", problem !== null);
  let hint = "";
  if (problem?.kind === "off") hint = "The daemon keeps no events on disk. With a directory in [spool] of its configuration, hours and days are shown here.";
  else if (problem) hint = `The past cannot be asked for now: ${problem.text}.`;
  else if (answer.kept_since === null) hint = "Nothing is kept yet.";
  else if (answer.kept_since > answer.since) hint = `Events are kept since ${moment(answer.kept_since)}.`;
  if (!problem && answer.missing) hint = `${hint} ${missingWords(answer.missing)}`.trim();
  setText(byId("timeline-hint"), hint);
  const names = new Set(answer.streams.map(({ stream }) => stream));
  for (const [name, row] of timeline.rows) if (!names.has(name)) (row.element.remove(), timeline.rows.delete(name));
  answer.streams.forEach((sums, place) => {
    const row = timeline.rows.get(sums.stream) ?? makeRow(sums.stream);
    timeline.rows.set(sums.stream, row);
    row.sums = indexed(sums);
    const at = byId("timeline-rows").children[place];
    if (at !== row.element) byId("timeline-rows").insertBefore(row.element, at ?? null);
    setAttribute(row.slider, "aria-valuemax", String(answer.steps - 1));
    setStep(row, Math.min(row.step ?? answer.steps - 1, answer.steps - 1), false);
  });
  showLegend();
  showAxis();
  showTable();
  drawTimeline();
}

/** Sums by number of the step, for reading and drawing. */
function indexed(sums) {
  const byStep = (pairs) => new Map(pairs);
  const presence = Object.entries(sums.presence).map(([label, pairs]) => [label, byStep(pairs)]);
  return { presence, alerts: byStep(sums.alerts), down: byStep(sums.down), resting: byStep(sums.resting) };
}

function makeRow(stream) {
  const canvas = make("canvas", { "aria-hidden": "true", height: ROW_HEIGHT });
  const slider = make("div", { class: "timeline-row", role: "slider", tabindex: 0, "aria-label": `${stream}, step by step; Enter lists what happened then`, "aria-valuemin": 0, "aria-valuemax": 0, "aria-valuenow": 0 }, canvas);
  const name = make("span", { class: "timeline-name", text: stream, title: stream });
  const row = { stream, canvas, slider, element: make("div", { class: "timeline-stream" }, name, slider), sums: null, step: null };
  const stepAt = (event) => {
    const { left, width } = canvas.getBoundingClientRect();
    return Math.max(0, Math.min(timeline.answer.steps - 1, Math.floor(((event.clientX - left) / width) * timeline.answer.steps)));
  };
  slider.addEventListener("pointermove", (event) => setStep(row, stepAt(event), true));
  slider.addEventListener("pointerleave", () => drawTimeline());
  slider.addEventListener("click", (event) => pick(row, stepAt(event)));
  slider.addEventListener("keydown", (event) => walkRow(event, row));
  slider.addEventListener("focus", () => setStep(row, row.step, true));
  slider.addEventListener("blur", drawTimeline);
  return row;
}

function walkRow(event, row) {
  if (event.altKey || event.ctrlKey || event.metaKey) return;
  const last = timeline.answer.steps - 1;
  const moved = { ArrowLeft: row.step - 1, ArrowRight: row.step + 1, PageDown: row.step - 12, PageUp: row.step + 12, Home: 0, End: last }[event.key];
  if (moved !== undefined) setStep(row, Math.max(0, Math.min(last, moved)), true);
  else if (event.key === "Enter" || event.key === " ") pick(row, row.step);
  else return;
  event.preventDefault();
}

function pick(row, step) {
  const { since } = timeline.answer;
  timeline.choose(row.stream, since + step * stepSeconds(), since + (step + 1) * stepSeconds());
}

const stepSeconds = () => (timeline.answer.until - timeline.answer.since) / timeline.answer.steps;

/** What happened in a step, in words. */
function stepWords(row, step) {
  const begin = timeline.answer.since + step * stepSeconds();
  const end = begin + stepSeconds();
  const { presence, alerts, down, resting } = row.sums;
  const parts = presence.filter(([, counts]) => counts.has(step)).map(([label, counts]) => several(counts.get(step), label));
  if (alerts.has(step)) parts.push(`${alerts.get(step)} ${alerts.get(step) === 1 ? "alert" : "alerts"}`);
  if (down.has(step)) parts.push(`not up for ${duration(down.get(step))}`);
  if (resting.has(step)) parts.push(`paused or over for ${duration(resting.get(step))}`);
  if (timeline.answer.gaps.some(([from, to]) => from < end && to > begin)) parts.push("the daemon did not run");
  return `${moment(begin)} to ${clock(end)}: ${parts.join(", ") || "nothing"}`;
}

function setStep(row, step, isShown) {
  row.step = step;
  const words = stepWords(row, step);
  setAttribute(row.slider, "aria-valuenow", String(step));
  setAttribute(row.slider, "aria-valuetext", words);
  if (!isShown) return;
  setText(byId("timeline-at"), `${row.stream}, ${words}`);
  drawTimeline();
}

function drawTimeline() {
  if (!timeline.answer) return;
  for (const row of timeline.rows.values()) drawRow(row);
}

function drawRow({ canvas, sums, slider, step }) {
  const { answer } = timeline;
  const ratio = Math.min(devicePixelRatio, 2);
  const [width, height] = [Math.round(canvas.clientWidth * ratio), Math.round(ROW_HEIGHT * ratio)];
  if (!width || !sums) return;
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { alpha: true });
  context.clearRect(0, 0, width, height);
  const stepWidth = width / answer.steps;
  const xOf = (at) => ((at - answer.since) / (answer.until - answer.since)) * width;
  context.fillStyle = GAP_COLOUR;
  const before = answer.kept_since === null ? answer.until : answer.kept_since;
  for (const [from, to] of [[answer.since, before], ...answer.gaps]) {
    const [begin, end] = [Math.max(xOf(from), 0), Math.min(xOf(to), width)];
    if (end > begin) hatch(context, begin, Math.max(end - begin, ratio), height, ratio);
  }
  const [lane, base] = [height * 0.6, height * 0.78];
  const most = Math.max(3, ...sums.presence.flatMap(([, counts]) => [...counts.values()]));
  const filled = new Array(answer.steps).fill(0);
  for (const [label, counts] of sums.presence) {
    context.fillStyle = colourOf(label);
    for (const [at, count] of counts) {
      const tall = Math.max(3 * ratio, (Math.log1p(count) / Math.log1p(most)) * lane * 0.7);
      const from = base - filled[at] - tall;
      context.fillRect(at * stepWidth, Math.max(from, 0), Math.max(stepWidth - 0.5, ratio), Math.min(tall, base));
      filled[at] += tall;
    }
  }
  drawSpells(context, sums.resting, REST_COLOUR, base, height, stepWidth, ratio);
  drawSpells(context, sums.down, DOWN_COLOUR, base, height, stepWidth, ratio);
  for (const at of sums.alerts.keys()) drawAlert(context, (at + 0.5) * stepWidth, 6 * ratio, 5 * ratio);
  if (slider === document.activeElement || slider.matches(":hover")) {
    context.strokeStyle = "#ffffff";
    context.lineWidth = ratio;
    context.strokeRect(step * stepWidth, ratio / 2, Math.max(stepWidth, 3 * ratio), height - ratio);
  }
}

/** The time at which a stream was not up, along the lower edge: as long as it was, but never too short to see. */
function drawSpells(context, spells, colour, top, height, stepWidth, ratio) {
  context.fillStyle = colour;
  for (const [at, seconds] of spells) {
    const part = Math.min(1, seconds / stepSeconds());
    context.fillRect(at * stepWidth, top + ratio, Math.max(stepWidth * part, 2 * ratio), height - top - ratio);
  }
}

function drawAlert(context, x, y, size) {
  context.beginPath();
  for (const [dx, dy] of [[0, -size], [size, 0], [0, size], [-size, 0]]) context.lineTo(x + dx, y + dy);
  context.closePath();
  context.lineWidth = size / 3;
  context.strokeStyle = "#05070a";
  context.stroke();
  context.fillStyle = ALERT_COLOUR;
  context.fill();
}

/** Where nothing is known. */
function hatch(context, left, width, height, ratio) {
  context.save();
  context.beginPath();
  context.rect(left, 0, width, height);
  context.clip();
  context.fillRect(left, 0, width, height);
  context.strokeStyle = "#4a5666";
  context.lineWidth = ratio;
  context.beginPath();
  for (let x = left - height; x < left + width; x += 7 * ratio) {
    context.moveTo(x, height);
    context.lineTo(x + height, 0);
  }
  context.stroke();
  context.restore();
}

function showLegend() {
  const labels = [...new Set(timeline.answer.streams.flatMap((sums) => Object.keys(sums.presence)))].sort();
  const swatch = (colour, kind) => {
    const mark = make("i", { class: `swatch ${kind}` });
    if (colour) mark.style.backgroundColor = colour;
    return mark;
  };
  byId("timeline-legend").replaceChildren(
    ...labels.slice(0, 8).map((label) => make("li", {}, swatch(colourOf(label), ""), label)),
    make("li", {}, swatch(ALERT_COLOUR, "diamond"), "alert"),
    make("li", {}, swatch(DOWN_COLOUR, ""), "not up"),
    make("li", {}, swatch(REST_COLOUR, ""), "paused or over"),
    make("li", {}, swatch("", "hatched"), "nothing kept"),
  );
}

function showAxis() {
  const { since, until } = timeline.answer;
  const isLong = until - since > 2 * 86400;
  const format = isLong ? { weekday: "short", day: "numeric", month: "short" } : { hour: "2-digit", minute: "2-digit", hour12: false };
  const ticks = [0, 1, 2, 3, 4].map((part) => new Date((since + ((until - since) * part) / 4) * 1000));
  byId("timeline-axis").replaceChildren(...ticks.map((date) => make("span", { text: isLong ? date.toLocaleDateString([], format) : date.toLocaleTimeString([], format) })));
}

function showTable() {
  const { answer } = timeline;
  const sum = (pairs) => pairs.reduce((total, [, value]) => total + value, 0);
  const head = ["Stream", "Busiest", "Alerts", "Not up", "Paused or over"].map((text) => make("th", { scope: "col", text }));
  const body = answer.streams.map((sums) => {
    const most = Object.entries(sums.presence).map(([label, pairs]) => several(Math.max(...pairs.map(([, count]) => count)), label));
    const cells = [most.join(", ") || "–", String(sum(sums.alerts)), sum(sums.down) ? duration(sum(sums.down)) : "–", sum(sums.resting) ? duration(sum(sums.resting)) : "–"];
    return make("tr", {}, make("th", { scope: "row", text: sums.stream }), ...cells.map((text) => make("td", { text })));
  });
  byId("timeline-table").replaceChildren(
    make("caption", { text: `The last ${SPAN_WORDS[timeline.span]}. Busiest: the most objects in ${duration(stepSeconds())}.` }),
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...body),
  );
}
