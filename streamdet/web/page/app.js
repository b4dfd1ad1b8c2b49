/* Puts it all together: what the top line says, and what each answer changes. */

const reduced = matchMedia("(prefers-reduced-motion: reduce)");
let paused = false;

function wants() {
  const pictures = paused ? [] : openView().pictures?.() ?? [];
  return { pictures, filter, detail: openView().detail?.() || null, drops: openView().drops === true, review: openView().news?.() ?? null, calm: reduced.matches };
}

let shownInstance = "";

async function show(head, bytes) {
  clockDifference = head.now - Date.now() / 1000;
  heard.at = performance.now();
  if (head.overview) {
    const { disconnected_seconds: gone, has_none: hasNone, quiet_seconds: quietSeconds, endpoint, cluster } = head.overview;
    Object.assign(heard, { daemon: gone === null, endpoint, hasNone, quietSeconds, cluster });
    byId("nodes-link").hidden = !cluster;
    if (head.dropped) updateDrops(head.dropped);
    // Another server has sent all that it knows: nothing of the one before stays.
    updateRows(head.overview.streams, head.instance !== shownInstance, head.overview.clock);
    shownInstance = head.instance;
    offerLabels(rows.values());
    openView().update?.(head);
    showTotals();
    showToReview(head.to_review);
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
  setText(byId("total-up"), all.length ? `${up.length} of ${awake}` : "–");
  byId("total-up").classList.toggle("bad", problems > 0);
  setText(byId("total-in"), perSecond(all.length ? sum("fps_in") : null));
  setText(byId("total-out"), perSecond(all.length ? sum("fps_out") : null));
  setText(byId("total-latency"), milliseconds(latencies[Math.floor(latencies.length / 2)]));
  setText(byId("count-all"), String(all.length));
  setText(byId("count-up"), String(up.length));
  setText(byId("count-problem"), String(problems));
  document.title = `${problems ? `(${problems}) ` : ""}${openView().title()}`;
}

const MOST_TO_REVIEW = 99;

/** How many alerts no one has reviewed yet; where no events are kept, nothing. @param {number | null} count */
function showToReview(count) {
  const [shown, words] = byId("to-review").children;
  byId("to-review").hidden = !count;
  if (!count) return;
  const text = count > MOST_TO_REVIEW ? `${MOST_TO_REVIEW}+` : String(count);
  setText(shown, text);
  setText(words, ` (${count > MOST_TO_REVIEW ? `more than ${MOST_TO_REVIEW}` : count} ${count === 1 ? "alert" : "alerts"} to review)`);
}

let serverProblem = "";
let daemonProblem = "";

/** A moment without a connection, as at the start, is not worth a word. */
const QUIET_DISCONNECTION_SECONDS = 1.5;

/** So long no stream may send anything, where one is up, before that is worth a word. */
const QUIET_DAEMON_SECONDS = 5;

function tellConnection({ disconnected_seconds: seconds, quiet_seconds: quiet, is_silent: silent, endpoint, cluster }) {
  daemonProblem = "";
  if (cluster) {
    daemonProblem = problemOfCluster(cluster);
  } else if (seconds !== null) {
    if (seconds >= QUIET_DISCONNECTION_SECONDS) daemonProblem = `No connection to the daemon at ${endpoint}. Is it running? Trying again …`;
  } else {
    const up = [...rows.values()].filter((row) => row.state === "up");
    if (silent || (up.length && quiet >= QUIET_DAEMON_SECONDS && !up.some(isLive))) {
      daemonProblem = `The daemon at ${endpoint} is connected, but has sent nothing for ${duration(quiet)}.`;
    }
  }
  showNotice();
}

/** What is wrong with the head, or with the way to nodes of which the head hears. */
function problemOfCluster({ problem, answered_seconds: answered, nodes }) {
  if (problem) return `${sentenceOf(problem)} ${answered === null ? "Trying again …" : "Streams go on from the nodes that are known."}`;
  const away = nodes.filter(({ state, away_seconds: seconds }) => state !== "lost" && seconds >= QUIET_DISCONNECTION_SECONDS);
  return away.length ? `No connection from here to ${away.map(({ name }) => name).join(", ")}: what is watched there is not live.` : "";
}

function tellServer(problem) {
  serverProblem = problem;
  showNotice();
}

function showNotice() {
  // Without a login nothing is asked for, and what is known of the server and the daemon is old.
  const text = session.isOver ? "" : serverProblem || daemonProblem;
  if (session.isOver) byId("logged-out").hidden = false;
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
initSession();
initToolbar();
initAdd();
initRemove();
initFilters();
initDetail();
initZones();
initRules();
initReview();
addEventListener("hashchange", () => route(true));
addEventListener("keydown", (event) => {
  const typing = /** @type {Element} */ (event.target).closest?.("input, select, textarea");
  const isDialog = document.querySelector("dialog[open]") !== null; // which closes itself
  if (event.key === "Escape" && address.name !== "wall" && !typing && !isDialog) location.hash = "#/";
});
addEventListener("visibilitychange", showFreshness);
addEventListener("online", askAgain);
setInterval(showFreshness, LOOK_MILLISECONDS);
route(false);
askForEver(wants, show, tellServer);
