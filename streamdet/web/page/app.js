/* Puts it all together: what the top line says, and what each answer changes. */

const reduced = matchMedia("(prefers-reduced-motion: reduce)");
let paused = false;

function wants() {
  const pictures = paused ? [] : openView().pictures?.() ?? [];
  return { pictures, filter, detail: openStream || null, calm: reduced.matches };
}

let shownInstance = "";

async function show(head, bytes) {
  clockDifference = head.now - Date.now() / 1000;
  heard.at = performance.now();
  if (head.overview) {
    heard.daemon = head.overview.disconnected_seconds === null;
    // Another server has sent all that it knows: nothing of the one before stays.
    updateRows(head.overview.streams, head.instance !== shownInstance, head.now - head.overview.made_at);
    shownInstance = head.instance;
    offerLabels(rows.values());
    openView().update?.(head);
    showTotals();
    tellConnection(head.overview);
  }
  if (head.events) updateJournal(head.events);
  await showPictures(head.pictures, bytes);
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
  const { pictures, draw } = openView();
  if (draw && pictures?.().includes(shot.stream)) draw(bitmap, shot);
  else bitmap.close();
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
  document.title = `${problems ? `(${problems}) ` : ""}${openView().title()}`;
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

function showNotice() {
  const text = serverProblem || daemonProblem;
  setText(byId("notice"), text);
  byId("notice").hidden = !text;
}

/** Updates the ages that are shown, also when no more events come. */
function showFreshness() {
  if (document.hidden) return;
  const silence = secondsSince(heard.at);
  if (silence >= SERVER_SILENCE_SECONDS) tellServer(`The server of this page has not answered for ${duration(silence)}. Trying again …`);
  openView().refresh?.();
  showTotals();
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
  const typing = /** @type {Element} */ (event.target).closest?.("input, select, textarea");
  if (event.key === "Escape" && address.name !== "wall" && !typing) location.hash = "#/";
});
addEventListener("visibilitychange", showFreshness);
setInterval(showFreshness, 500);
route(false);
askForEver(wants, show, tellServer);
