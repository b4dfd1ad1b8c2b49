/* Puts it all together: which view is open, what the top line says, and what each answer changes. */

const choice = { show: "all", find: "" };
const reduced = matchMedia("(prefers-reduced-motion: reduce)");
let paused = false;
/** Server's clock minus ours, in seconds: states begin at times of the server. */
let clockDifference = 0;

/** Unix time in seconds by the server's clock. */
function serverNow() {
  return Date.now() / 1000 + clockDifference;
}

function wants() {
  const pictures = paused ? [] : openStream ? [openStream] : visibleStreams();
  return { pictures, filter, detail: openStream, calm: reduced.matches };
}

async function show(head, bytes) {
  clockDifference = head.now - Date.now() / 1000;
  heard.at = performance.now();
  if (head.overview) showOverview(head.overview, head.instance, head.now - head.overview.made_at);
  if (head.events) updateJournal(head.events);
  if (openStream && head.overview) updateDetail(head.detail);
  await showPictures(head.pictures, bytes);
}

let shownInstance = "";

function showOverview(overview, instance, ageSeconds) {
  heard.daemon = overview.disconnected_seconds === null;
  // Another server has sent all that it knows: nothing of the one before stays.
  updateRows(overview.streams, instance !== shownInstance, ageSeconds);
  shownInstance = instance;
  const shown = updateWall(choice);
  showTotals();
  offerLabels(rows.values());
  showEmpty(overview, shown);
  tellConnection(overview);
}

function showTotals() {
  const all = [...rows.values()];
  const up = all.filter(isUp);
  const problems = all.filter(isProblem).length;
  const awake = up.length + problems;
  const sum = (key) => up.reduce((total, row) => total + row[key], 0);
  const latencies = up.map((row) => row.latency_ms).filter((value) => value !== null).sort((a, b) => a - b);
  setText(byId("total-up"), `${up.length} of ${awake}`);
  byId("total-up").classList.toggle("bad", problems > 0);
  setText(byId("total-in"), perSecond(sum("fps_in")));
  setText(byId("total-out"), perSecond(sum("fps_out")));
  setText(byId("total-latency"), milliseconds(latencies[Math.floor(latencies.length / 2)]));
  setText(byId("count-all"), String(all.length));
  setText(byId("count-up"), String(up.length));
  setText(byId("count-problem"), String(problems));
  document.title = `${problems ? `(${problems}) ` : ""}${openStream ?? "streamdet"}`;
}

function showEmpty(overview, shown) {
  const empty = byId("wall-empty");
  empty.hidden = shown > 0;
  const none = overview.disconnected_seconds === null ? "The daemon has not reported any stream yet." : `Waiting for a daemon at ${overview.endpoint}.`;
  setText(empty, rows.size ? "No stream matches." : none);
}

async function showPictures(pictures, bytes) {
  let begin = 0;
  const slices = pictures.map((shot) => ({ shot, jpeg: bytes.subarray(begin, (begin += shot.bytes)) }));
  await Promise.all(slices.map(({ shot, jpeg }) => showPicture(shot, jpeg)));
}

async function showPicture(shot, jpeg) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(new Blob([jpeg], { type: "image/jpeg" }));
  } catch {
    return; // a damaged picture; the next one comes soon
  }
  if (shot.stream === openStream) showDetailPicture(bitmap, shot);
  else {
    const tile = tiles.get(shot.stream);
    if (!openStream && tile?.visible) {
      tile.draw(bitmap, shot);
      tile.veil.hidden = rows.get(shot.stream)?.state === "up";
    }
    bitmap.close();
  }
}

let serverProblem = "";
let daemonProblem = "";

/** A moment without a connection, as at the start, is not worth a word. */
const QUIET_DISCONNECTION_SECONDS = 1.5;

function tellConnection({ disconnected_seconds: seconds, endpoint }) {
  const gone = seconds !== null && seconds >= QUIET_DISCONNECTION_SECONDS;
  daemonProblem = gone ? `No connection to the daemon at ${endpoint}. Is it running? Trying again …` : "";
  showNotice();
}

function tellServer(problem) {
  serverProblem = problem;
  showNotice();
}

/** Updates the ages that are shown, also when no more events come. */
function showFreshness() {
  if (document.hidden) return;
  const silence = secondsSince(heard.at);
  if (silence >= SERVER_SILENCE_SECONDS) tellServer(`The server of this page has not answered for ${duration(silence)}. Trying again …`);
  for (const tile of tiles.values()) {
    tile.showFreshness();
    tile.element.hidden = !isChosen(rows.get(tile.name), choice);
  }
  showDetailFreshness();
  showTotals();
}

function showNotice() {
  const text = serverProblem || daemonProblem;
  setText(byId("notice"), text);
  byId("notice").hidden = !text;
}

/** Opens what the address says. @param {boolean} byPerson whether someone followed a link */
function route(byPerson) {
  const match = /^#\/stream\/(.+)$/.exec(location.hash);
  const before = openStream;
  let stream = null;
  try {
    stream = match ? decodeURIComponent(match[1]) : null;
  } catch {
    stream = null; // not an address that we made
  }
  byId("wall-view").hidden = stream !== null;
  byId("detail-view").hidden = stream === null;
  if (stream === null) closeDetail();
  else openDetail(stream);
  listOnly(stream ?? "");
  if (byPerson) moveFocus(stream, before);
  have.revision = 0;
  askAgain();
}

/** The focus goes where the eyes go: to the title, and back to the tile that one came from. */
function moveFocus(stream, before) {
  scrollTo(0, 0);
  if (stream !== null) byId("detail-title").focus({ preventScroll: true });
  else tiles.get(before ?? "")?.link.focus();
}

function initToolbar() {
  byId("find").addEventListener("input", () => choose({ find: byId("find").value.trim().toLowerCase() }));
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => choose({ show: button.dataset.show }));
  }
  byId("wall").addEventListener("keydown", walkWall);
  const size = byId("size");
  size.value = kept.get("size", size.value);
  const resize = () => byId("wall").style.setProperty("--tile", `${size.value}px`);
  size.addEventListener("input", () => (kept.set("size", size.value), resize()));
  resize();
}

function choose(change) {
  Object.assign(choice, change);
  for (const button of document.querySelectorAll("[data-show]")) {
    setAttribute(button, "aria-pressed", String(button.dataset.show === choice.show));
  }
  byId("wall-empty").hidden = updateWall(choice) > 0;
  setText(byId("wall-empty"), "No stream matches.");
}

function initHeader() {
  byId("pause").addEventListener("click", () => {
    paused = !paused;
    setAttribute(byId("pause"), "aria-pressed", String(paused));
    askAgain();
  });
  byId("skip").addEventListener("click", (event) => {
    event.preventDefault(); // the part after # is the address of a view
    byId("main").focus();
  });
  const theme = byId("theme");
  theme.value = kept.get("theme", "auto");
  const paint = () => document.documentElement.setAttribute("data-theme", theme.value);
  theme.addEventListener("change", () => (kept.set("theme", theme.value), paint()));
  paint();
}

initHeader();
initToolbar();
initFilters();
initDetail();
addEventListener("hashchange", () => route(true));
addEventListener("keydown", (event) => {
  const typing = /** @type {Element} */ (event.target).closest?.("input, select");
  if (event.key === "Escape" && openStream && !typing) location.hash = "#/";
});
addEventListener("visibilitychange", showFreshness);
setInterval(showFreshness, 500);
route(false);
askForEver(wants, show, tellServer);
