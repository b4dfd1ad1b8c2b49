/* The list of events: objects, alerts, states, losses, restarts; filtered by the server. */

const MAX_ENTRIES = 150;
const MAX_CHIPS = 8;

/** What the list shows. */
const filter = { stream: "", only: "", label: "", min_score: 0, alerts: true, objects: true, notes: true };
let freshList = true;
let changing = 0;
/** What has come while the list is pressed, the newest first; null while it is not. @type {any[] | null} */
let heldBack = null;

/** Wires up the controls. */
function initFilters() {
  byId("filters").addEventListener("submit", (event) => event.preventDefault());
  byId("filters").addEventListener("input", readFilters);
  // What is pressed must be there still when it is let go: else there is no click. A menu takes what follows for itself.
  byId("journal").addEventListener("pointerdown", () => (heldBack ??= []));
  for (const end of ["pointerup", "pointercancel", "contextmenu", "blur"]) addEventListener(end, () => heldBack && setTimeout(showHeldBack));
}

function showHeldBack() {
  const entries = heldBack ?? [];
  heldBack = null;
  const newest = new Set();
  updateJournal(entries.filter(({ key }) => !key || (!newest.has(key) && newest.add(key))));
}

function readFilters() {
  filter.stream = byId("filter-stream").value.trim().toLowerCase().slice(0, 128);
  filter.label = byId("filter-label").value;
  filter.min_score = Number(byId("filter-score").value) / 100;
  filter.alerts = byId("filter-alerts").checked;
  filter.objects = byId("filter-objects").checked;
  filter.notes = byId("filter-notes").checked;
  setText(byId("filter-score-shown"), percent(filter.min_score));
  setAttribute(byId("journal"), "aria-busy", "true");
  clearTimeout(changing);
  changing = setTimeout(beginList, 150);
}

/** On a stream's own page the list is about that stream. @param {string} stream */
function listOnly(stream) {
  byId("filter-stream-field").hidden = stream !== "";
  setText(byId("events-title"), stream ? `Events of ${stream}` : "Events");
  document.querySelector(".events").classList.toggle("of-one", stream !== "");
  if (filter.only !== stream) {
    filter.only = stream;
    beginList();
  }
}

function beginList() {
  clearTimeout(changing);
  changing = 0;
  freshList = true;
  setAttribute(byId("journal"), "aria-busy", "true");
  heldBack &&= [];
  forgetEvents();
}

/** Labels that were seen can be chosen. @param {Iterable<any>} streams */
function offerLabels(streams) {
  const select = byId("filter-label");
  const offered = new Set([...select.options].map((option) => option.value));
  const fresh = new Set([...streams].flatMap((row) => Object.keys(row.labels)));
  for (const label of [...fresh].sort()) {
    if (!offered.has(label)) select.append(make("option", { value: label, text: label }));
  }
}

/** Shows new entries on top. @param {any[]} entries the newest first */
function updateJournal(entries) {
  if (heldBack) {
    heldBack = [...entries, ...heldBack].slice(0, MAX_ENTRIES);
    return;
  }
  const list = byId("journal");
  if (freshList) {
    list.replaceChildren();
    freshList = false;
    // Not yet where a filter has changed meanwhile.
    if (!changing) setAttribute(list, "aria-busy", "false");
  } else {
    announceStates(entries.filter(({ kind, state }) => kind === "moved" || (kind === "state" && state !== "connecting")).reverse());
  }
  // An object or alert that is listed changes where it stands: nothing jumps.
  const listed = new Map([...list.querySelectorAll("[data-key]")].map((item) => [item.dataset.key, item]));
  const fresh = [];
  for (const entry of entries) {
    const before = entry.key && listed.get(entry.key);
    if (before) replaceEntry(before, makeEntry(entry));
    else fresh.push(entry);
  }
  list.prepend(...fresh.sort((a, b) => b.at - a.at).map(makeEntry));
  while (list.children.length > MAX_ENTRIES) list.lastChild.remove();
  byId("journal-empty").hidden = list.children.length > 0;
  setText(byId("journal-empty"), isFiltered() ? "Nothing matches the filter yet." : "Nothing yet.");
}

const isFiltered = () => filter.stream || filter.label || filter.min_score > 0 || !filter.alerts || !filter.objects || !filter.notes;

/** Keeps the focus at a link of an entry that changes. @param {any} before @param {any} entry */
function replaceEntry(before, entry) {
  const at = [...before.querySelectorAll("a")].indexOf(document.activeElement);
  before.replaceWith(entry);
  if (at >= 0) (entry.querySelectorAll("a")[at] ?? entry.querySelector("a"))?.focus({ preventScroll: true });
}

/** Says each change of state, or how many they are. @param {any[]} changes the oldest first */
function announceStates(changes) {
  if (changes.length > MAX_ANNOUNCEMENTS) announce(`${changes.length} changes of state. The list of events shows them.`);
  else for (const change of changes) announce(change.kind === "moved" ? `${change.stream} has moved from ${change.before} to ${change.node}.` : stateSentence(change));
}

function stateSentence(entry) {
  return `${entry.stream} is ${stateWord(entry.state).toLowerCase()}${entry.state === "up" ? "" : `. ${whyNot(entry)}`}`;
}

function makeEntry(entry) {
  const item = make("li", { class: weight(entry), "data-kind": entry.kind });
  item.append(make("time", { datetime: new Date(entry.at * 1000).toISOString(), text: clock(entry.at) }));
  item.append(entry.stream ? make("a", { class: "journal-stream", href: addressOf("stream", entry.stream), text: entry.stream }) : make("span", { text: entry.node ? `Node ${entry.node}` : "Daemon" }));
  if (entry.kind === "seen") item.append(makeChips(entry.objects));
  else if (entry.kind === "object") item.append(makeObject(entry));
  else if (entry.kind === "alert") item.append(make("p", {}, makeLink(entry, sentence(entry))));
  else item.append(make("p", { text: sentence(entry) }));
  if (entry.key) item.dataset.key = entry.key;
  if (isInReview(entry)) item.classList.add("opens");
  return item;
}

/** The review lists an alert once it is raised, an object once it has ended. */
const isInReview = ({ kind, is_over: isOver }) => kind === "alert" || (kind === "object" && isOver);

/** To its card in the review; the whole entry can be clicked (journal.css). @param {any} entry @param {string} text */
function makeLink({ key, listed_at: at }, text) {
  return make("a", { class: "journal-card", href: addressOf("review", "", { id: key, at: String(Math.round(at)) }), text });
}

function makeObject(entry) {
  const { label, score, track_id: track, zones, seconds, is_over: isOver } = entry;
  const swatch = make("i", { class: "swatch" });
  swatch.style.backgroundColor = colourOf(label);
  const where = zones.length ? `, ${zones.join(", ")}` : "";
  const still = isOver ? lasting(seconds, ", for ") : ", still there";
  const name = isOver ? makeLink(entry, `${label} #${track}`) : make("span", {}, make("b", { text: label }), ` #${track}`);
  return make("p", { class: "chips" }, make("span", {}, swatch, name), make("span", { text: `${percent(score)}${where}${still}` }));
}

function weight(entry) {
  if (entry.kind === "alert") return entry.is_over ? "wait" : "bad";
  if (entry.kind === "state" && isResting(entry)) return "";
  if (entry.kind === "state") return { up: "good", down: "bad" }[entry.state] ?? "wait";
  return { gap: "bad", disconnected: "bad", restart: "wait", moved: "wait", gone: "wait", connected: "good" }[entry.kind] ?? "";
}

function sentence(entry) {
  switch (entry.kind) {
    case "state": {
      const detail = entry.state !== "up" && entry.detail ? ` (${entry.detail})` : "";
      return entry.state === "up" ? "Up" : `${isResting(entry) ? whatNow(entry) : stateWord(entry.state)}. ${whyNot(entry)}${detail}`;
    }
    case "gap":
      return `${entry.count} ${entry.topic.startsWith("state") ? "state events" : "events"} were lost on the way to this page.`;
    case "alert":
      return `Alert: ${entry.rule}${entry.label ? ` (${entry.label})` : ""}${entry.is_over ? lasting(entry.seconds, ", over after ") : ", still raised"}.`;
    case "crossing":
      return `${entry.label} #${entry.track_id} crossed ${entry.line}, going ${entry.direction}.`;
    case "restart":
      return "The daemon was started again.";
    case "moved":
      return `Moved from ${entry.before} to ${entry.node}, ${duration(entry.gap_seconds)} without events.`;
    case "gone":
      return `Is no longer among the ${heard.cluster ? "cluster" : "daemon"}'s streams.`;
    case "connected":
      return "Connected again.";
    case "disconnected":
      return "The connection is gone.";
    default:
      return entry.kind;
  }
}

function makeChips(objects) {
  const chips = make("p", { class: "chips" });
  const labels = Object.entries(countLabels(objects)).sort((a, b) => b[1] - a[1]);
  for (const [label, count] of labels.slice(0, MAX_CHIPS)) {
    const best = Math.max(...objects.filter((found) => found.label === label).map((found) => found.score));
    const swatch = make("i", { class: "swatch" });
    swatch.style.backgroundColor = colourOf(label);
    chips.append(make("span", {}, swatch, make("b", { text: several(count, label) }), ` ${percent(best)}`));
  }
  return chips;
}
