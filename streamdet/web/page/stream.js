/* A stream's own page: its picture with zones and lines, its rates, its stages, its objects. */

const CHART_SAMPLES = 90;
const MAX_OBJECTS = 50;

/** The stream whose page is open. */
let openStream = "";
let geometry = null;
/** The newest picture, kept to draw it again when a switch is changed. @type {{bitmap: ImageBitmap, shot: any} | null} */
let newest = null;

const view = {};

/** Makes what stays the same for all streams. */
function initDetail() {
  view.canvas = make("canvas", { role: "img", width: 16, height: 9 });
  view.veilTitle = make("strong");
  view.veilText = make("span");
  view.veil = make("div", { class: "veil" }, view.veilTitle, view.veilText);
  view.picture = byId("detail-picture");
  view.age = make("span", { class: "age", hidden: true });
  view.takenAt = null;
  view.picture.append(view.canvas, view.veil, view.age);
  view.fps = makeChart("fps-chart", [["in", "in: captured"], ["out", "out: published"]]);
  view.latency = makeChart("latency-chart", [["latency", "median, capture to event"]]);
  for (const id of ["show-boxes", "show-labels", "show-zones"]) byId(id).addEventListener("change", drawDetail);
}

function makeChart(id, series) {
  const svg = makeSvg("svg", { class: "chart", viewBox: "0 0 100 100", preserveAspectRatio: "none", role: "img" });
  const legend = make("p", { class: "legend" });
  for (const [kind, text] of series) {
    const line = makeSvg("svg", { viewBox: "0 0 24 10", "aria-hidden": "true" }, makeSvg("line", { class: kind, x1: 0, y1: 5, x2: 24, y2: 5 }));
    legend.append(make("span", {}, line, text));
  }
  const top = make("span");
  const scale = make("p", { class: "scale", "aria-hidden": "true" }, top, make("span", { text: "0" }));
  const axis = make("p", { class: "axis" }, make("span", { text: `${CHART_SAMPLES} s ago` }), make("span", { text: "now" }));
  byId(id).append(legend, make("div", { class: "plot" }, scale, make("div", {}, svg, axis)));
  return { svg, top };
}

/** @param {string} stream */
function openDetail(stream) {
  if (openStream !== stream) {
    openStream = stream;
    geometry = null;
    newest?.bitmap.close();
    newest = null;
    view.takenAt = null;
    showAge(view);
    Object.assign(view.canvas, { width: 16, height: 9 });
    setText(byId("detail-caption"), "");
    byId("objects").replaceChildren();
  }
  setText(byId("detail-title"), stream);
  byId("edit-zones").href = addressOf("zones", stream);
  updateDetail(null);
}

function closeDetail() {
  byId("remove-dialog").close();
  havePictures.delete(openStream);
  leftStream = openStream;
  openStream = "";
}

/** @param {{known: any, metrics: any} | null | undefined} detail */
function updateDetail(detail) {
  const row = rows.get(openStream);
  byId("detail").hidden = !row;
  byId("detail-empty").hidden = Boolean(row);
  byId("detail-state").hidden = !row;
  showSteps();
  if (!row) {
    setText(byId("detail-empty"), whyUnknown());
    return;
  }
  showDetailFreshness();
  setText(byId("detail-why"), row.state === "up" ? "" : `${whyNot(row)}${row.reason && row.detail ? ` The daemon says: ${row.detail}` : ""}`);
  if (row.size) byId("detail-picture").style.setProperty("--ratio", `${row.size[0]} / ${row.size[1]}`);
  showCharts();
  if (detail?.known) {
    geometry = detail.known.geometry;
    showObjects(detail.known);
  }
  if (detail) showStages(detail.metrics);
  showFacts(row, detail);
}

function whyUnknown() {
  if (!heard.endpoint) return "Loading the stream …";
  if (!heard.daemon) return `Waiting for ${heard.cluster ? "the head of the cluster" : "a daemon"} at ${heard.endpoint}.`;
  if (openStream === adding.name && secondsSince(adding.at) < FIRST_STATES_SECONDS) return "Waiting for its first state …";
  return rows.size || hasNoStreams() ? `The ${heard.cluster ? "cluster" : "daemon"} has no stream of this name.` : "Loading the stream …";
}

/** Shows whether what is shown is of now; called now and then, whatever comes or does not come. */
function showDetailFreshness() {
  const row = rows.get(openStream);
  if (!row) return;
  const state = byId("detail-state");
  const live = isLive(row);
  byId("detail").classList.toggle("past", !live);
  setAttribute(state, "data-state", live ? (isResting(row) ? "resting" : row.state) : "unknown");
  if (live) setText(state, whatNow(row));
  else setText(state, row.takenAt === null ? "Not heard of" : lastSeen(secondsSince(row.takenAt)));
  showVeil(view.picture, view.veil, view.veilTitle, view.veilText, row);
  showAge(view);
}

function showCharts() {
  const history = histories.get(openStream) ?? [];
  const fps = drawLines(view.fps.svg, fpsSeries(history), CHART_SAMPLES);
  const latency = drawLines(view.latency.svg, latencySeries(history), CHART_SAMPLES);
  setText(view.fps.top, `${fps} fps`);
  setText(view.latency.top, milliseconds(history.some((sample) => sample[2] !== null) ? latency : null));
  const row = rows.get(openStream);
  setAttribute(view.fps.svg, "aria-label", `Now ${perSecond(row.fps_in)} in and ${perSecond(row.fps_out)} out`);
  setAttribute(view.latency.svg, "aria-label", `Now ${milliseconds(row.latency_ms)}`);
}

function showFacts(row, detail) {
  const facts = [
    ["Captured", `${perSecond(row.fps_in)} fps`],
    ["Published", `${perSecond(row.fps_out)} fps`],
    ["Latency p50", milliseconds(row.latency_ms)],
    ["Latency p95", milliseconds(row.latency_p95_ms)],
    ["Frame size", row.size ? `${row.size[0]} × ${row.size[1]}` : "–"],
    ["Time stamps by", row.clock === "source" ? "the camera" : "the daemon"],
    [row.state === "up" ? "Up for" : isResting(row) ? `${whatNow(row)} for` : "Not up for", row.since === null ? "–" : duration(serverNow() - row.since)],
    ["Events lost here", String(row.lost)],
  ];
  if (row.node) facts.unshift(["Node", whereOf(row).replace(/^on /, "")]);
  for (const [reason, fps] of Object.entries(detail?.metrics.dropped_fps ?? {})) {
    if (fps > 0) facts.push([`Dropped, ${DROPS[reason] ?? reason}`, `${perSecond(fps)} fps`]);
  }
  if (!detail && byId("facts").children.length) return;
  fillFacts(byId("facts"), /** @type {[string, string][]} */ (facts));
}

function showStages({ problem, engine, stages, batch_size: batch, queue_wait_ms: wait }) {
  const known = stages.filter(({ ms }) => ms !== null);
  const total = known.reduce((sum, { ms }) => sum + ms, 0);
  const most = Math.max(...known.map(({ ms }) => ms), 0.001);
  let hint = "Reading the daemon's metrics …";
  if (problem) hint = `Not known: ${problem}.`;
  else if (stages.length && !known.length) hint = "No batch was detected in the last seconds.";
  else if (known.length) {
    hint = `One batch of ${batch?.toFixed(1) ?? "–"} frames takes ${milliseconds(total)}; a frame waits ${milliseconds(wait)} for its batch. Means over some seconds and all streams.`;
  }
  if (engine) hint += ` Detecting with ${engine}.`;
  setText(byId("stages-hint"), hint);
  byId("stages").replaceChildren(
    ...known.map(({ stage, ms }) =>
      make(
        "tr",
        {},
        make("th", { scope: "row", text: STAGES[stage] ?? stage }),
        make("td", {}, make("meter", { min: 0, max: most, value: ms, "aria-label": `${STAGES[stage] ?? stage}: ${milliseconds(ms)}` })),
        make("td", { text: milliseconds(ms) }),
      ),
    ),
  );
}

function showObjects({ frame, detections }) {
  const head = ["Label", "Score", "Track", "Zones", "Size"].map((text) => make("th", { scope: "col", text }));
  const body = detections.slice(0, MAX_OBJECTS).map((found) => {
    const [x1, y1, x2, y2] = found.box;
    const swatch = make("i", { class: "swatch" });
    swatch.style.backgroundColor = colourOf(found.label);
    return make(
      "tr",
      {},
      make("td", {}, swatch, found.label),
      make("td", { text: percent(found.score) }),
      make("td", { text: found.track_id === null ? "–" : `#${found.track_id}` }),
      make("td", { text: found.zones.join(", ") || "–" }),
      make("td", { text: `${Math.round(x2 - x1)} × ${Math.round(y2 - y1)}` }),
    );
  });
  const nothing = make("tr", {}, make("td", { colspan: 5, text: frame ? "Nothing was found." : "No frame yet." }));
  byId("objects").replaceChildren(
    make("thead", {}, make("tr", {}, ...head)),
    make("tbody", {}, ...(body.length ? body : [nothing])),
  );
}

/** Links to the streams before and after this one. */
function showSteps() {
  const names = [...rows.keys()];
  const at = names.indexOf(openStream);
  for (const [id, name] of [["previous", names[at - 1]], ["next", names[at + 1]]]) {
    const link = byId(id);
    if (name) {
      link.href = addressOf("stream", name);
      link.removeAttribute("aria-disabled");
    } else {
      link.removeAttribute("href");
      link.setAttribute("aria-disabled", "true");
    }
  }
}

/** @param {ImageBitmap} bitmap @param {any} shot */
function showDetailPicture(bitmap, shot) {
  newest?.bitmap.close();
  newest = { bitmap, shot };
  view.takenAt = shot.takenAt;
  showAge(view);
  drawDetail();
}

function drawDetail() {
  if (!newest) return;
  drawShot(view.canvas, newest.bitmap, newest.shot, {
    boxes: byId("show-boxes").checked,
    labels: byId("show-labels").checked,
    geometry: byId("show-zones").checked ? geometry : null,
  });
  const { frame, detections } = newest.shot;
  const found = counted(countLabels(detections)) || "nothing found";
  setText(byId("detail-caption"), `Frame ${frame.seq}, captured ${clock(frame.captured_at)}: ${found}`);
  setAttribute(view.canvas, "aria-label", `Picture of ${openStream}: ${found}`);
}

addView("stream", {
  open(stream) {
    openDetail(stream);
    listOnly(stream);
  },
  close: closeDetail,
  title: () => openStream,
  detail: () => openStream,
  pictures: () => [openStream],
  draw: showDetailPicture,
  update: ({ detail }) => updateDetail(detail),
  refresh: showDetailFreshness,
});
