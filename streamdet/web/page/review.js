/* The review: what happened, each object and alert once, the past and the present in one list. */

const FILTER_KEYS = ["kind", "reviewed", "stream", "label", "zone", "rule", "last", "since", "until"];
const MARKED_AT_ONCE = 200;
const LINK_WINDOW_SECONDS = 60;
const MAX_LINK_PAGES = 20;
const JUST_NOW_SECONDS = 10;
const LOOK_AGAIN_MILLISECONDS = 500;
/** More that is new is not kept for the button: the list is read again. */
const MAX_NEWS = 200;
const RETRY_LIST_SECONDS = 5;

/** Everything that is listed, in its order. @type {{items: any[], byId: Map<string, any>, cards: Map<string, any>}} */
const list = { items: [], byId: new Map(), cards: new Map() };
const review = {
  /** What the list shows, as in the address. @type {Record<string, string> | null} */
  filter: null,
  /** Where the next page begins; null at the end. @type {string | null} */
  next: null,
  /** The newest change that we have. */
  number: 0,
  /** The newest mark that we have, of anyone. */
  marks: 0,
  /** Numbers of marks made here that answers on their way may not know, by id. @type {Map<string, number>} */
  ownMarks: new Map(),
  /** What has happened since, and is not shown yet. @type {Map<string, any>} */
  news: new Map(),
  isMore: false,
  loading: false,
  /** Of the server whose numbers these are. */
  instance: "",
  /** When the list could not be read. */
  failedAt: 0,
  geometry: {},
  problem: null,
  /** Which nodes of a cluster have not said what they keep, and why. */
  missing: "",
  marksProblem: "",
  /** Whose dialog is open. */
  open: "",
};

/** @param {string} path @returns {Promise<any>} null where it could not be fetched; the notice says why */
async function getJson(path) {
  for (;;) {
    await untilLoggedIn();
    try {
      const answer = await fetch(path);
      if (answer.status !== 401) return answer.ok ? await answer.json() : null;
      noteLoggedOut();
    } catch {
      return null;
    }
  }
}

/** Older ones are loaded before anyone gets there. */
const endInSight = new IntersectionObserver((entries) => entries.at(-1)?.isIntersecting && loadMore(), { rootMargin: "600px" });

function initReview() {
  for (const key of ["kind", "reviewed"]) {
    for (const button of document.querySelectorAll(`[data-${key}]`)) {
      if (button.closest("#review-view .toolbar")) button.addEventListener("click", () => change({ [key]: button.dataset[key] }));
    }
  }
  byId("review-fold").addEventListener("click", () => {
    setAttribute(byId("review-fold"), "aria-expanded", String(byId("review-fold").getAttribute("aria-expanded") !== "true"));
  });
  byId("review-filters").addEventListener("submit", (event) => event.preventDefault());
  byId("review-filters").addEventListener("change", (event) => {
    const { name, value } = event.target;
    change(name === "last" ? { last: value, since: "", until: "" } : { [name]: value });
  });
  byId("review-filters").addEventListener("reset", (event) => {
    event.preventDefault();
    change(Object.fromEntries(FILTER_KEYS.map((key) => [key, ""])));
  });
  byId("review-news").addEventListener("click", showNews);
  byId("review-more").addEventListener("click", loadMore);
  byId("review-mark").addEventListener("click", () => mark(list.items.filter((item) => !item.reviewed), true));
  byId("occurrences").addEventListener("keydown", walkCards);
  endInSight.observe(byId("review-more"));
  initTimeline((stream, since, until) => change({ stream, since: String(Math.floor(since)), until: String(Math.ceil(until)), last: "" }));
  initOccurrence();
}

/** Opens the list with another filter. */
function change(changed) {
  location.hash = addressOf("review", "", clean({ ...review.filter, ...changed }));
}

const clean = (fields) => Object.fromEntries(Object.entries(fields).filter(([key, value]) => FILTER_KEYS.includes(key) && value));

/** What is asked for, as the server reads it. */
function asked() {
  const { last, ...fields } = review.filter ?? {};
  return clean(last ? { ...fields, since: String(Math.floor(serverNow() - Number(last))) } : fields);
}

addView("review", {
  alone: true,
  title: () => (review.open ? titleOf(list.byId.get(review.open) ?? { rule: "Review" }) : "Review"),
  open: openReview,
  close: closeReview,
  news: () => (review.number ? { ...asked(), after: review.number, marks: review.marks } : null),
  update({ instance, review: news }) {
    review.instance ||= instance;
    if (review.instance !== instance) review.ownMarks.clear();
    if (review.instance !== instance && !review.open) {
      // Another server: what happened before it was heard is no news to it.
      review.instance = instance;
      beginReview();
    } else if (news) takeNews(news);
  },
  refresh() {
    refreshDialog();
    const isMissing = !review.number || (review.problem?.kind === "away" && !list.items.length);
    if (isMissing && !review.loading && secondsSince(review.failedAt) >= RETRY_LIST_SECONDS) load(null);
  },
});

function openReview(_what, query) {
  const filter = clean(Object.fromEntries(FILTER_KEYS.map((key) => [key, query.get(key) ?? ""])));
  const isOther = JSON.stringify(filter) !== JSON.stringify(review.filter);
  review.filter = filter;
  showFilter();
  if (isOther || !review.number) beginReview();
  refreshTimeline();
  showOccurrence(query.get("id") ?? "", Number(query.get("at")));
}

function closeReview() {
  stopTimeline();
  closeDialog();
}

function showFilter() {
  const { filter } = review;
  for (const key of ["kind", "reviewed"]) {
    for (const button of document.querySelectorAll(`#review-view .toolbar [data-${key}]`)) {
      setAttribute(button, "aria-pressed", String(button.dataset[key] === (filter[key] ?? "")));
    }
  }
  offerFilters();
  const form = byId("review-filters");
  const custom = form.elements.last.querySelector("[value=custom]");
  custom?.remove();
  if (filter.since || filter.until) {
    const text = `${filter.since ? moment(Number(filter.since)) : "…"} to ${filter.until ? clock(Number(filter.until)) : "now"}`;
    form.elements.last.append(make("option", { value: "custom", text }));
  }
  for (const key of ["stream", "label", "zone", "rule"]) form.elements[key].value = filter[key] ?? "";
  form.elements.last.value = filter.since || filter.until ? "custom" : filter.last ?? "";
  byId("review-clear").hidden = Object.keys(filter).length === 0;
  const folded = ["stream", "label", "zone", "rule"].filter((key) => filter[key]).length + Number(form.elements.last.value !== "");
  setText(byId("review-fold"), folded ? `Filters (${folded})` : "Filters");
}

/** What was seen so far can be chosen, and what the address says. */
function offerFilters() {
  const streams = [...rows.keys()];
  const labels = [...rows.values()].flatMap((row) => Object.keys(row.labels));
  const shapes = Object.values(review.geometry).flatMap((geometry) => geometry.zones.map(({ name }) => name));
  offer("stream", [...streams, ...list.items.map((item) => item.stream)]);
  offer("label", [...labels, ...list.items.map((item) => item.label)]);
  offer("zone", [...shapes, ...list.items.flatMap((item) => item.zones)]);
  offer("rule", list.items.map((item) => item.rule));
}

function offer(key, values) {
  const select = byId("review-filters").elements[key];
  const offered = new Set([...select.options].map((option) => option.value));
  const wanted = [...new Set([...values, review.filter[key]])].filter(Boolean).sort();
  for (const value of wanted) if (!offered.has(value)) select.append(make("option", { value, text: value }));
}

/** The list begins again. */
async function beginReview() {
  Object.assign(list, { items: [], byId: new Map(), cards: new Map() });
  Object.assign(review, { next: null, news: new Map(), isMore: false, number: 0 });
  byId("occurrences").replaceChildren();
  showList("Reading …");
  await load(null);
}

async function load(after) {
  const { items } = list;
  review.loading = true;
  const query = new URLSearchParams({ ...asked(), ...(after === null ? {} : { after }) });
  const answer = await getJson(`/api/review?${query}`);
  if (items !== list.items) return undefined; // the list has begun again
  review.loading = false;
  if (!answer || answer.problem) review.failedAt = performance.now();
  if (!answer) return showList("The list cannot be read now.");
  if (after === null) Object.assign(review, { number: answer.number, marks: answer.marks });
  // Where the daemon does not answer now, older ones can be asked for later.
  const next = after !== null && answer.problem ? after : answer.next;
  Object.assign(review, { next, problem: answer.problem, missing: answer.missing, marksProblem: answer.marks_problem });
  Object.assign(review.geometry, answer.geometry);
  keepOwnMarks(answer);
  for (const item of answer.items) add(item, false);
  offerFilters();
  showFilter();
  showList();
  if (after === null) askAgain();
  if (answer.problem) return undefined;
  // Where too few came to move the end out of sight, it is looked at again.
  endInSight.unobserve(byId("review-more"));
  endInSight.observe(byId("review-more"));
  return undefined;
}

async function loadMore() {
  if (review.next !== null && !review.loading && address.name === "review") await load(review.next);
}

/** Adds what is not listed yet, at one end; what is, is changed. */
function add(item, atTop) {
  const card = list.cards.get(item.id);
  if (card) {
    Object.assign(list.byId.get(item.id), item);
    updateCard(card, item);
    return refreshDialog();
  }
  const made = makeCard(item, (one) => mark([one], !one.reviewed));
  list.byId.set(item.id, item);
  list.cards.set(item.id, made);
  list.items[atTop ? "unshift" : "push"](item);
  byId("occurrences")[atTop ? "prepend" : "append"](made);
  setCardAddress(made, item);
  return refreshDialog();
}

function setCardAddress(card, item) {
  setAttribute(card.firstChild, "href", addressOfItem(item));
}

const addressOfItem = (item) => addressOf("review", "", { ...review.filter, id: item.id, at: String(Math.round(timeOf(item))) });

function takeNews({ number, marks, marked, items, more }) {
  Object.assign(review, { number, marks });
  if (marked === null) review.open ? load(null) : beginReview(); // more than the server knows
  else takeMarks(marked, marks);
  keepOwnMarks({ items, marks });
  for (const item of [...items].reverse()) {
    if (list.cards.has(item.id)) add(item, false);
    else review.news.set(item.id, item);
    // One that a link has led to is not listed yet.
    if (item.id === review.open && list.byId.has(item.id)) Object.assign(list.byId.get(item.id), item);
  }
  review.isMore ||= more || review.news.size > MAX_NEWS;
  for (const id of review.news.keys()) {
    if (review.news.size <= MAX_NEWS) break;
    review.news.delete(id); // the oldest
  }
  if (!items.length) return;
  // Into an empty list they come at once: there is nothing that could jump.
  if (list.items.length || review.next !== null || review.isMore) showList();
  else addNews();
}

/** Whether what was read when marks had this number is from before a mark that was made here. @param {string} id @param {number} marks */
function isBeforeOwnMark(id, marks) {
  const own = review.ownMarks.get(id);
  if (own !== undefined && own <= marks) review.ownMarks.delete(id);
  return own !== undefined && own > marks;
}

/** Corrects items that were read before they were marked here. @param {{items: any[], marks: number}} answer */
function keepOwnMarks({ items, marks }) {
  for (const item of items) {
    const known = list.byId.get(item.id) ?? review.news.get(item.id);
    if (known && isBeforeOwnMark(item.id, marks)) item.reviewed = known.reviewed;
  }
}

/** Shows what others have marked; the cards stay where they are. @param {Record<string, boolean>} marked by id @param {number} marks */
function takeMarks(marked, marks) {
  let changes = 0;
  for (const [id, reviewed] of Object.entries(marked)) {
    if (isBeforeOwnMark(id, marks)) continue;
    for (const item of [list.byId.get(id), review.news.get(id)]) {
      if (!item || item.reviewed === reviewed) continue;
      item.reviewed = reviewed;
      changes++;
      const card = list.cards.get(id);
      if (card) updateCard(card, item);
    }
  }
  if (!changes) return;
  showMark();
  showList();
}

/** New ones come on top when someone wants them, so that nothing jumps. */
function showNews() {
  if (review.isMore) return beginReview();
  addNews();
  byId("occurrences").querySelector("a")?.focus();
  return undefined;
}

function addNews() {
  const news = [...review.news.values()].sort((a, b) => timeOf(a) - timeOf(b));
  review.news.clear();
  for (const item of news) add(item, true);
  offerFilters();
  showList();
}

function showList(empty = "") {
  const count = review.news.size;
  byId("review-news").hidden = count === 0;
  if (count) setText(byId("review-news"), `${count}${review.isMore ? " or more" : ""} new`);
  byId("review-more").hidden = review.next === null;
  byId("review-mark").hidden = !list.items.some((item) => !item.reviewed);
  const isFiltered = Object.keys(review.filter ?? {}).length > 0;
  setText(byId("review-count"), list.items.length ? `${list.items.length}${review.next === null ? "" : "+"} listed` : "");
  byId("review-empty").hidden = list.items.length > 0;
  setText(byId("review-empty"), empty || (review.next !== null ? "Looking further back …" : !isFiltered ? "Nothing has happened yet." : review.filter.until ? "Nothing matches the filters." : "Nothing matches the filters yet. What does comes here by itself."));
  setText(byId("review-hint"), hints().join(" "));
}

/** @param {string} nodes which do not answer, and why */
const missingWords = (nodes) => `What these nodes keep is missing: ${nodes}.`;

function hints() {
  const hints = [];
  if (review.problem?.kind === "off") hints.push("The daemon keeps no events on disk, so this list has only what has happened since the page's server was started. Set directory in [spool] of its configuration.");
  else if (review.problem) hints.push(`The past cannot be asked for now: ${review.problem.text}.`);
  else if (review.missing) hints.push(missingWords(review.missing));
  if (list.items.length >= 5 && !list.items.some((item) => item.event.picture)) hints.push("None of them has a picture: set directory in [pictures], and picture = true in rules.");
  if (review.marksProblem) hints.push(review.marksProblem);
  return hints;
}

/** Arrow keys go from card to card. */
function walkCards(event) {
  const here = event.target.closest?.(".occurrence");
  if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
  const columns = getComputedStyle(byId("occurrences")).gridTemplateColumns.split(" ").length;
  const moved = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
  if (moved === undefined) return;
  const cards = [...byId("occurrences").children];
  const to = cards[cards.indexOf(here) + moved];
  if (!to) return;
  to.firstChild.focus();
  event.preventDefault();
}

/** @param {any[]} items @param {boolean} reviewed */
async function mark(items, reviewed) {
  for (let begin = 0; begin < items.length; begin += MARKED_AT_ONCE) {
    const some = items.slice(begin, begin + MARKED_AT_ONCE);
    try {
      const answer = await fetch("/api/reviewed", {
        method: "POST",
        headers: { "Content-Type": "application/json" },
        body: JSON.stringify({ ids: some.map(({ id }) => id), reviewed }),
      });
      if (answer.status === 401) noteLoggedOut();
      if (!answer.ok) return announce("It could not be marked.");
      const { problem, marks } = await answer.json();
      review.marksProblem = problem;
      if (marks <= review.marks) continue; // it has been heard of already, and perhaps of later ones
      for (const { id } of some) review.ownMarks.set(id, marks);
    } catch {
      return announce("It could not be marked.");
    }
    for (const item of some) {
      item.reviewed = reviewed;
      const card = list.cards.get(item.id); // none of one that a link has led to, or once the list began again
      if (card) updateCard(card, item);
    }
  }
  showMark();
  showList();
  announce(`${items.length === 1 ? titleOf(items[0]) : `${items.length} of them`}: ${reviewed ? "reviewed" : "not reviewed"}.`);
  return undefined;
}

/* The dialog of one of them. */

function initOccurrence() {
  const dialog = byId("occurrence-dialog");
  byId("occurrence-close").addEventListener("click", leave);
  dialog.addEventListener("cancel", (event) => (event.preventDefault(), leave()));
  dialog.addEventListener("click", (event) => event.target === dialog && leave());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "Escape") event.stopPropagation(); // it closes the dialog alone
    if (event.altKey || event.ctrlKey || event.metaKey || event.target.closest("video, input, pre, summary")) return;
    if (event.key === "ArrowLeft") step(-1);
    else if (event.key === "ArrowRight") step(1);
    else if (event.key.toLowerCase() === "r") byId("occurrence-mark").click();
    else return;
    event.preventDefault();
  });
  byId("occurrence-previous").addEventListener("click", () => step(-1));
  byId("occurrence-next").addEventListener("click", () => step(1));
  byId("occurrence-mark").addEventListener("click", () => {
    const item = list.byId.get(review.open);
    if (item) mark([item], !item.reviewed);
  });
  byId("occurrence-copy").addEventListener("click", () => copy(JSON.stringify(list.byId.get(review.open)?.event ?? null, null, 2)));
  byId("occurrence-copy-link").addEventListener("click", () => copy(location.href));
  for (const id of ["path", "box", "zones"]) byId(`occurrence-${id}`).addEventListener("change", drawOverlay);
}

async function copy(text) {
  try {
    await navigator.clipboard.writeText(text);
    setText(byId("occurrence-copied"), "Copied.");
  } catch {
    setText(byId("occurrence-copied"), "This browser does not allow it here.");
  }
}

/** Goes to the one before or after, loading older ones where there are more. */
async function step(by) {
  const at = list.items.findIndex((item) => item.id === review.open);
  if (by > 0 && at === list.items.length - 1) await loadMore();
  const item = list.items[at + by];
  if (item) location.replace(addressOfItem(item));
}

/** Back to the list. */
function leave() {
  location.hash = addressOf("review", "", review.filter);
}

/** Opens the dialog of one, also of one that is not listed: a link says when it was. */
async function showOccurrence(id, at) {
  if (!id) return closeDialog();
  review.open = id;
  if (!list.byId.has(id) && Number.isFinite(at)) {
    const found = await lookFor(id, at);
    if (review.open !== id) return undefined;
    // Beside the list: where it belongs in its order is not known.
    if (found && !list.byId.has(id)) list.byId.set(id, found);
  }
  const item = list.byId.get(id);
  const dialog = byId("occurrence-dialog");
  setText(byId("occurrence-title"), item ? `${titleOf(item)} · ${item.stream}` : "It is not kept any longer");
  byId("occurrence-dialog").classList.toggle("unknown", !item);
  if (!dialog.open) {
    dialog.showModal();
    byId("occurrence-title").focus();
  }
  if (!item) return undefined;
  fillDialog(item);
  return refreshShapes(item);
}

/** Zones may have been drawn, changed or removed since the list was read. */
async function refreshShapes({ id, stream }) {
  const shapes = await getJson(`/api/shapes?${new URLSearchParams({ stream })}`);
  if (!shapes) return;
  if (JSON.stringify(shapes[stream]) === JSON.stringify(review.geometry[stream])) return;
  if (stream in shapes) review.geometry[stream] = shapes[stream];
  else delete review.geometry[stream];
  if (review.open === id) drawOverlay();
}

/** Looks around the time of a link; what has just happened may not be kept yet. @param {string} id @param {number} at */
async function lookFor(id, at) {
  for (;;) {
    const span = { since: String(Math.max(at - LINK_WINDOW_SECONDS, 0)), until: String(at + LINK_WINDOW_SECONDS) };
    for (let after = "", pages = 0; after !== null && pages < MAX_LINK_PAGES; pages++) {
      const answer = await getJson(`/api/review?${new URLSearchParams({ ...span, ...(after && { after }) })}`);
      Object.assign(review.geometry, answer?.geometry);
      const found = answer?.items.find((item) => item.id === id) ?? list.byId.get(id) ?? review.news.get(id);
      if (found || review.open !== id) return found;
      after = answer?.next ?? null;
    }
    if (serverNow() - at > JUST_NOW_SECONDS) return undefined;
    await sleep(LOOK_AGAIN_MILLISECONDS);
  }
}

function fillDialog(item) {
  const place = byId("occurrence-shot");
  place.classList.toggle("tall", viewOf(item).height > viewOf(item).width);
  showPictureOf(place, item, false);
  drawOverlay();
  showClip(byId("occurrence-clip"), item);
  refreshDialog();
  setText(byId("occurrence-copied"), "");
  const at = list.items.findIndex((one) => one.id === item.id);
  byId("occurrence-previous").disabled = at <= 0;
  byId("occurrence-next").disabled = at < 0 || (at === list.items.length - 1 && review.next === null);
  // A button that is disabled loses the focus, and with it the keys.
  if (document.activeElement?.matches(":disabled")) byId("occurrence-title").focus();
  showMark();
}

/** What is known of the one that is open changes while it lasts. */
function refreshDialog() {
  const item = list.byId.get(review.open);
  if (!item || !byId("occurrence-dialog").open) return;
  fillFacts(byId("occurrence-facts"), factsOf(item));
  setText(byId("occurrence-json"), JSON.stringify(item.event, null, 2));
  showMark();
}

function showMark() {
  const item = list.byId.get(review.open);
  if (item) setAttribute(byId("occurrence-mark"), "aria-pressed", String(item.reviewed));
}

function drawOverlay() {
  const item = list.byId.get(review.open);
  if (!item) return;
  const place = byId("occurrence-shot");
  place.querySelector("svg")?.remove();
  const options = { path: byId("occurrence-path").checked, box: byId("occurrence-box").checked, zones: byId("occurrence-zones").checked };
  const path = pathOf(item);
  byId("occurrence-path").parentNode.hidden = path.length < 2;
  byId("occurrence-box").parentNode.hidden = !item.event.picture?.box;
  const area = viewOf(item);
  place.style.setProperty("--ratio", `${area.width} / ${area.height}`);
  place.append(makeOverlay(item, review.geometry[item.stream], path, options));
}

/** Of an object its own; of an alert that of its object, where that is listed. */
function pathOf(item) {
  if (item.rule === null) return item.event.object.path;
  const objects = item.event.alert.object_ids.map((id) => list.byId.get(id)).filter(Boolean);
  return objects.length === 1 ? objects[0].event.object.path : [];
}

function closeDialog() {
  const dialog = byId("occurrence-dialog");
  const id = review.open;
  review.open = "";
  if (!dialog.open) return;
  removeClip(byId("occurrence-clip"));
  dialog.close();
  list.cards.get(id)?.firstChild.focus();
}
