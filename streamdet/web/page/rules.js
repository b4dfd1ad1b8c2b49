/* Rules: those in force, a form for one of them, what it would have raised in the past, and its text for the file. */

const RULE_DAYS = [["mon", "Monday"], ["tue", "Tuesday"], ["wed", "Wednesday"], ["thu", "Thursday"], ["fri", "Friday"], ["sat", "Saturday"], ["sun", "Sunday"]];
const FORM_KEY = "streamdet.rule";
const MAX_NAME_OF_RULE = 64;
const MAX_THUMBNAILS = 12;
const MAX_TRIED_STREAMS = 16;
const MAX_NAMED_STREAMS = 3;
/** So often the rules in force are read while they are shown. */
const RULES_MILLISECONDS = 3000;
/** Keys that the form has fields for; others of a rule that is edited stay as they are. */
const FORM_KEYS = ["name", "streams", "labels", "zone", "line", "direction", "for_seconds", "at_least", "none_for_seconds", "between", "days", "cooldown_seconds", "picture", "clip_seconds"];
const NEW_RULE = { name: "", streams: "", kind: "presence", labels: "", zone: "", line: "", direction: "", at_least: "3", for_seconds: "", none_for_seconds: "600", cooldown_seconds: "30", picture: true, clip: true, before: "5", after: "10", from: "", to: "", days: [] };

const ruling = {
  /** The rules in force; null where the server does not say. @type {any[] | null} */
  rules: null,
  version: "",
  /** The rule that is edited, by its name; empty for a new one. */
  edited: "",
  /** Keys of it that the form has no fields for, and times that are more than one span. @type {Record<string, any>} */
  others: {},
  /** How it was in force when the form was filled; null for a new one. @type {any} */
  base: null,
  /** What the form said then, as text. */
  filled: "",
  /** Whether someone has named it. */
  isNamed: false,
  /** What someone else has done to it meanwhile. */
  news: "",
  /** Whether the rules in force last over restarts. */
  isPersisted: false,
  /** Whether the daemon keeps pictures and clips; null while that is not known. @type {{pictures: boolean, clips: boolean} | null} */
  keeps: null,
  /** Why alerts have no clips, by stream. @type {Record<string, string>} */
  clipMissing: {},
  /** Published outlines by stream. @type {Record<string, any>} */
  shapes: {},
  isSending: false,
  /** Counts readings of the rules in force, so that an older answer replaces no newer one. */
  reads: 0,
  isReading: false,
  readAt: 0,
  /** Counts tries, so that an answer to an older one is not shown. */
  tries: 0,
};

const ruleForm = () => byId("rule-form").elements;
const listIn = (text) => text.split(",").map((each) => each.trim()).filter(Boolean);

/** Whether a name fits a pattern as in file names: `*`, `?` and `[...]`. @param {string} glob @param {string} name */
function fitsGlob(glob, name) {
  const source = glob.replace(/\[(!?)([^\]]+)\]|[.*+?^${}()|[\]\\]/g, (found, not, set) => (set ? `[${not ? "^" : ""}${set.replace(/[\\^]/g, "\\$&")}]` : found === "*" ? ".*" : found === "?" ? "." : `\\${found}`));
  try {
    return new RegExp(`^${source}$`, "s").test(name);
  } catch {
    return false;
  }
}

/** The streams that the form names. */
function ruledStreams() {
  const globs = listIn(ruleForm().streams.value);
  return [...rows.keys()].filter((name) => !globs.length || globs.some((glob) => fitsGlob(glob, name)));
}

addView("rules", {
  alone: true,
  title: () => "Rules",
  open: openRules,
  close() {
    keepForm();
    byId("rule-dialog").close();
  },
  update: offerStreams,
  refresh: readRulesAgain,
});

/** Opens the form as it was left; with a name, that rule; with a zone or line, a new rule of it. @param {string} what @param {URLSearchParams} query */
async function openRules(what, query) {
  restoreForm();
  offerStreams();
  showRule();
  const wanted = Object.fromEntries(["stream", "zone", "line"].map((key) => [key, query.get(key) ?? ""]));
  const isWanted = wanted.stream || wanted.zone || wanted.line;
  // The form goes on from here, also when the page is loaded again.
  if (what || isWanted) history.replaceState(null, "", "#/rules");
  if (isWanted) await beginRule(wanted);
  await readAccount();
  await readRules(true);
  if (!what) return;
  const rule = ruling.rules?.find(({ name }) => name === what);
  if (!rule) setText(byId("rule-problem"), ruling.rules ? `There is no rule ${what} any more.` : "Which rules are in force is not known here.");
  else if (await mayLeave(rule.name)) editRule(rule);
}

/** Fills the form for a zone or line, unless a rule of it is begun there already. */
async function beginRule({ stream, zone, line }) {
  const values = /** @type {any} */ (valuesOfForm());
  const isBegun = !ruling.edited && isRuleChanged() && values.streams === stream && (values.kind === "crossing" ? values.line === line && !zone : values.zone === zone && !line);
  if (isBegun) return announce("What you typed before and did not apply is still here.");
  if (!(await mayLeave(""))) return;
  const labels = rows.get(stream)?.labels ?? {};
  fillForm({ ...NEW_RULE, streams: stream, kind: line ? "crossing" : "presence", zone, line, labels: "person" in labels ? "person" : "" }, "");
  showRule();
  keepForm();
}

/** @param {boolean} [asksWhatIsKept] which changes only when the daemon is started again */
async function readRules(asksWhatIsKept) {
  const number = ++ruling.reads;
  ruling.isReading = true;
  const [known, shapes] = [await getRules(asksWhatIsKept), await getJson("/api/shapes")];
  if (number !== ruling.reads) return;
  Object.assign(ruling, { isReading: false, readAt: performance.now() });
  if (shapes) ruling.shapes = shapes;
  if (known?.keeps) Object.assign(ruling, { keeps: known.keeps, clipMissing: known.clip_missing ?? {} });
  if (known) {
    Object.assign(ruling, { rules: known.rules, version: known.version, isPersisted: known.persisted === true });
    compareWithOthers();
  }
  showRules();
  showRule();
}

function readRulesAgain() {
  if (account.reads && !ruling.isReading && !ruling.isSending && performance.now() - ruling.readAt > RULES_MILLISECONDS) readRules();
}

const inForce = () => ruling.rules?.find(({ name }) => name === ruling.edited) ?? null;

/** Whether the rule that is edited is not in force any more. */
const isGone = () => ruling.edited !== "" && ruling.rules !== null && !inForce();

/** Compares the rule that is edited with what is in force now, which someone else may have changed. */
function compareWithOthers() {
  const now = inForce();
  ruling.base ??= now;
  if (ruling.edited === "") return;
  if (now && JSON.stringify(now) === JSON.stringify(ruling.base)) {
    if (isRuleChanged()) ruling.news = "";
    return;
  }
  if (!now) ruling.news = "Someone else has deleted this rule, or given it another name. Apply puts it in force again.";
  else if (isRuleChanged()) ruling.news = `Someone else has changed this rule meanwhile. In force is now: ${ruleInWords(now)} Apply replaces it by yours, Discard changes takes theirs.`;
  else {
    fillFrom(now);
    ruling.news = "Someone else has changed this rule. The form shows it as it is now.";
  }
}

/* The form */

/** @param {any} values by field @param {string} edited @param {Record<string, any>} [others] @param {any} [base] as it is in force */
function fillForm(values, edited, others = {}, base = null) {
  Object.assign(ruling, { edited, others, base, news: "", isNamed: Boolean(values.name) });
  const form = ruleForm();
  for (const [key, value] of Object.entries(values)) {
    if (key === "days") for (const box of byId("rule-days").querySelectorAll("input")) box.checked = value.includes(box.value);
    else if (typeof value === "boolean") form[key].checked = value;
    else {
      if (form[key].tagName === "SELECT" && value && ![...form[key].options].some((option) => option.value === value)) form[key].append(make("option", { value, text: value }));
      form[key].value = value;
    }
  }
  ruling.filled = textOfForm();
  showRuleProblems([], "");
  for (const id of ["rule-done", "rule-tried", "rule-copied"]) setText(byId(id), "");
  byId("rule-done-link").hidden = true;
  byId("rule-alerts").replaceChildren();
  ruling.tries++;
}

function valuesOfForm() {
  const form = ruleForm();
  const values = Object.fromEntries(Object.entries(NEW_RULE).filter(([key]) => key !== "days").map(([key, value]) => [key, typeof value === "boolean" ? form[key].checked : form[key].value]));
  return { ...values, days: [...byId("rule-days").querySelectorAll("input:checked")].map((box) => box.value) };
}

/** What the form says, as text; a name that no one has typed does not count. */
function textOfForm() {
  const { name, ...rule } = ruleOfForm();
  return JSON.stringify(ruling.isNamed ? { name, ...rule } : rule);
}

const isRuleChanged = () => textOfForm() !== ruling.filled;

function keepForm() {
  const { edited, others, base, filled, isNamed } = ruling;
  try {
    sessionStorage.setItem(FORM_KEY, JSON.stringify({ values: valuesOfForm(), edited, others, base, filled, isNamed, isChanged: isRuleChanged() }));
  } catch {
    // Private windows of some browsers keep nothing.
  }
}

/** What the browser keeps of the form. @returns {any} */
function keptForm() {
  try {
    return JSON.parse(sessionStorage.getItem(FORM_KEY) ?? "{}") ?? {};
  } catch {
    return {};
  }
}

function restoreForm() {
  const { values, edited = "", others = {}, base = null, filled, isNamed } = keptForm();
  fillForm({ ...NEW_RULE, ...values }, edited, others, base);
  if (filled !== undefined) Object.assign(ruling, { filled, isNamed });
}

/** Asks in a dialog. @param {string} title @param {string} what @param {string} yes what the button says @returns {Promise<boolean>} */
function askFirst(title, what, yes) {
  const dialog = byId("rule-dialog");
  if (dialog.open) return Promise.resolve(false);
  setText(byId("rule-dialog-title"), title);
  setText(byId("rule-dialog-what"), what);
  setText(byId("rule-dialog-yes"), yes);
  dialog.returnValue = "";
  dialog.showModal();
  byId("rule-dialog-no").focus();
  return new Promise((done) => dialog.addEventListener("close", () => done(dialog.returnValue === "yes"), { once: true }));
}

/** Whether the form may be filled otherwise: what is not applied is lost then. @param {string} next the rule that is wanted, empty for a new one */
async function mayLeave(next) {
  if (!isRuleChanged() || (next && next === ruling.edited)) return !isRuleChanged();
  const what = ruling.edited ? `You have changed the rule ${ruling.edited}, and not applied it.` : "You have begun a new rule, and not applied it.";
  return askFirst("Discard your changes?", what, "Discard them");
}

/** Begins again with what is in force, or with an empty form. */
function discardRule() {
  const rule = inForce();
  if (rule) fillFrom(rule);
  else fillForm(NEW_RULE, "");
  showRules();
  showRule();
  keepForm();
  announce("Your changes are discarded.");
}

/** Opens a rule that is in force in the form. @param {any} rule */
function editRule(rule) {
  fillFrom(rule);
  showRules();
  showRule();
  keepForm();
  announce(`Editing ${rule.name}.`);
}

/** A rule of the configuration as the form has it. @param {any} rule */
function fillFrom(rule) {
  const kind = rule.line ? "crossing" : rule.none_for_seconds ? "absence" : rule.at_least ? "count" : "presence";
  const text = (key) => (rule[key] === undefined || rule[key] === null ? "" : String(rule[key]));
  const spans = rule.between ?? [];
  const [before, after] = rule.clip_seconds ?? [NEW_RULE.before, NEW_RULE.after];
  const others = Object.fromEntries(Object.entries(rule).filter(([key]) => !FORM_KEYS.includes(key)));
  if (spans.length > 1) others.between = spans;
  fillForm({
    name: rule.name, streams: (rule.streams ?? []).join(", "), kind, labels: (rule.labels ?? []).join(", "), zone: text("zone"), line: text("line"), direction: text("direction"),
    at_least: text("at_least") || NEW_RULE.at_least, for_seconds: text("for_seconds"), none_for_seconds: text("none_for_seconds") || NEW_RULE.none_for_seconds, cooldown_seconds: text("cooldown_seconds"),
    picture: rule.picture === true, clip: Boolean(rule.clip_seconds), before: String(before), after: String(after), from: spans.length === 1 ? spans[0][0] : "", to: spans.length === 1 ? spans[0][1] : "", days: rule.days ?? [],
  }, rule.name, others, rule);
}

/** A number, or the text itself where it is none: the server says what is wrong with it. @param {string} text */
const numberOr = (text) => (text.trim() !== "" && Number.isFinite(Number(text.replace(",", "."))) ? Number(text.replace(",", ".")) : text);

/** The rule as the configuration has it. @returns {Record<string, any>} */
function ruleOfForm() {
  const { name, kind, ...values } = /** @type {any} */ (valuesOfForm());
  const rule = { name };
  const add = (key, value) => value !== "" && value !== undefined && (rule[key] = value);
  const [streams, labels] = [listIn(values.streams), listIn(values.labels)];
  if (streams.length) rule.streams = streams;
  if (labels.length) rule.labels = labels;
  if (kind === "crossing") {
    rule.line = values.line;
    add("direction", values.direction);
  } else add("zone", values.zone);
  if (kind === "count") rule.at_least = numberOr(values.at_least);
  if (kind === "presence" || kind === "count") add("for_seconds", values.for_seconds === "" ? "" : numberOr(values.for_seconds));
  if (kind === "absence") rule.none_for_seconds = numberOr(values.none_for_seconds);
  if (values.from || values.to) rule.between = [[values.from, values.to]];
  if (values.days.length) rule.days = values.days;
  if (values.cooldown_seconds !== "" && Number(values.cooldown_seconds) !== 0) rule.cooldown_seconds = numberOr(values.cooldown_seconds);
  if (values.picture) rule.picture = true;
  if (values.clip) rule.clip_seconds = [numberOr(values.before), numberOr(values.after)];
  return { ...rule, ...ruling.others, ...(rule.between ? { between: rule.between } : {}) };
}

const orList = (words, otherwise) => (words.length ? words.length === 1 ? words[0] : `${words.slice(0, -1).join(", ")} or ${words.at(-1)}` : otherwise);
const secondsInWords = (value) => (typeof value !== "number" ? `${value} seconds` : value === 1 ? "1 second" : value % 3600 === 0 && value ? `${value / 3600} h` : value % 60 === 0 && value ? `${value / 60} min` : `${value} seconds`);

/** "3 people or cars are", "1 person is". @param {number} count @param {string[]} labels */
function atLeast(count, labels) {
  if (count === 1) return `1 ${orList(labels, "object")} is`;
  const isKnown = labels.every((label) => PLURALS.has(label));
  return `${count} ${isKnown ? orList(labels.map((label) => PLURALS.get(label)), "objects") : `of ${orList(labels, "")}`} are`;
}

/** What a rule does, in plain English. @param {any} rule */
function ruleInWords(rule) {
  const what = orList(rule.labels ?? [], "object");
  const article = /^[aeiou]/.test(what) ? "an" : "a";
  const where = rule.zone ? `in the zone ${rule.zone}` : "in the picture";
  const streams = rule.streams?.length ? ` of ${orList(rule.streams, "")}` : " of any stream";
  let when = `When ${article} ${what} is ${where}${streams}${rule.for_seconds ? ` for ${secondsInWords(rule.for_seconds)}` : ""}, once for each`;
  if (rule.line !== undefined) when = `When ${article} ${what} crosses the line ${rule.line || "…"}${rule.direction ? ` going ${rule.direction}` : ""}${streams}, once for each`;
  else if (rule.none_for_seconds !== undefined) when = `When no ${what} has been ${where}${streams} for ${secondsInWords(rule.none_for_seconds)}`;
  else if (rule.at_least !== undefined) when = `When at least ${atLeast(rule.at_least, rule.labels ?? [])} ${where}${streams} at once${rule.for_seconds ? ` for ${secondsInWords(rule.for_seconds)}` : ""}`;
  const times = (rule.between ?? []).map(([from, to]) => `${from || "…"} to ${to || "…"}`);
  const days = (rule.days ?? []).map((day) => RULE_DAYS.find(([key]) => key === day)?.[1] ?? day);
  const only = times.length || days.length ? ` Only${times.length ? ` from ${times.join(" and ")}` : ""}${days.length ? ` on ${days.join(", ")}` : ""}.` : "";
  const parts = [...(rule.picture ? ["a picture"] : []), ...(rule.clip_seconds ? [`a clip from ${secondsInWords(rule.clip_seconds[0])} before to ${secondsInWords(rule.clip_seconds[1])} after`] : [])];
  const cooldown = rule.cooldown_seconds ? ` After an alert there is none on the same stream for ${secondsInWords(rule.cooldown_seconds)}.` : "";
  return `${when}: raise an alert${parts.length ? ` with ${parts.join(" and ")}` : ""}.${only}${cooldown}`;
}

/** A name for a rule that no one has named. */
function nameOfRule() {
  const { kind, labels, zone, line, at_least: count } = /** @type {any} */ (valuesOfForm());
  const what = orList(listIn(labels), "object");
  const where = zone ? ` in ${zone}` : "";
  const name = { presence: `${what}${where || " seen"}`, crossing: `${what} over ${line || "a line"}`, count: `${count} or more${where}`, absence: `no ${what}${where}` }[kind].slice(0, MAX_NAME_OF_RULE - 4);
  const taken = new Set((ruling.rules ?? []).map((rule) => rule.name));
  for (let number = 1; ; number++) {
    const free = number === 1 ? name : `${name} ${number}`;
    if (!taken.has(free)) return free;
  }
}

/* Showing */

/** What can be chosen: streams and labels that are known. */
function offerStreams() {
  const fill = (id, values) => {
    const list = byId(id);
    if (list.children.length !== values.length) list.replaceChildren(...values.map((value) => make("option", { value })));
  };
  fill("rule-streams", [...rows.keys()]);
  fill("rule-labels", [...new Set([...rows.values()].flatMap((row) => Object.keys(row.labels)))].sort());
}

/** Zones and lines of a rule that are drawn here and not applied yet. @param {any} rule @returns {{stream: string, kind: "zones" | "lines", name: string}[]} */
function draftsOfRule(rule) {
  const kind = rule?.line ? "lines" : "zones";
  const name = rule?.line ?? rule?.zone;
  const isConfigured = (stream) => (ruling.shapes[stream]?.[kind] ?? []).some((shape) => shape.name === name);
  return name ? ruledStreams().filter((stream) => !isConfigured(stream) && draftedNames(stream, kind).includes(name)).map((stream) => ({ stream, kind, name })) : [];
}

/** Zones and lines of the chosen streams, those that are drawn here and not applied as well. */
function offerShapes() {
  for (const [kind, key] of [["zones", "zone"], ["lines", "line"]]) {
    const select = ruleForm()[key];
    const chosen = select.value;
    const configured = new Set(ruledStreams().flatMap((stream) => (ruling.shapes[stream]?.[kind] ?? []).map(({ name }) => name)));
    const drafted = ruledStreams().flatMap((stream) => draftedNames(stream, /** @type {any} */ (kind))).filter((name) => !configured.has(name));
    const names = [...new Set([...configured, ...drafted, ...(chosen ? [chosen] : [])])];
    const wanted = [...(key === "zone" ? [["", "the whole picture"]] : names.length ? [] : [["", "none is drawn yet"]]), ...names.map((name) => [name, drafted.includes(name) ? `${name} (not applied yet)` : name])];
    if (JSON.stringify(wanted) === select.dataset.offered) continue;
    select.dataset.offered = JSON.stringify(wanted);
    select.replaceChildren(...wanted.map(([value, text]) => make("option", { value, text })));
    select.value = names.includes(chosen) ? chosen : wanted[0][0];
  }
}

/** What the daemon does not keep cannot be asked for. */
function offerFiles() {
  const { picture, clip } = ruleForm();
  const isUnchanged = !isRuleChanged();
  const missing = ruling.keeps ? [[picture, ruling.keeps.pictures, "pictures"], [clip, ruling.keeps.clips, "clips"]].filter(([, isKept]) => !isKept) : [];
  for (const box of [picture, clip]) box.disabled = missing.some(([of]) => of === box);
  for (const [box] of missing) box.checked = false;
  if (missing.length && isUnchanged) ruling.filled = textOfForm();
  const names = missing.map(([, , name]) => name);
  const notKept = names.length ? [`The daemon keeps no ${names.join(" and no ")}: its configuration has no directory in ${names.map((name) => `[${name}]`).join(" and ")}.`] : [];
  setText(byId("rule-kept"), [...notKept, ...(clip.checked ? missingClips() : [])].join(" "));
}

/** Which streams of the rule have no clips, a sentence for each reason. */
function missingClips() {
  const streams = ruledStreams().filter((name) => ruling.clipMissing[name]);
  return [...new Set(streams.map((name) => ruling.clipMissing[name]))].map((reason) => {
    const names = streams.filter((name) => ruling.clipMissing[name] === reason);
    const others = names.length > MAX_NAMED_STREAMS ? ` and ${names.length - MAX_NAMED_STREAMS} more` : "";
    return `Alerts of ${names.slice(0, MAX_NAMED_STREAMS).join(", ")}${others} have no clip: ${NO_CLIP[reason] ?? reason}.`;
  });
}

function showRule() {
  const form = ruleForm();
  offerShapes();
  offerFiles();
  for (const field of byId("rule-form").querySelectorAll("[data-of]")) field.hidden = !field.dataset.of.split(" ").includes(form.kind.value);
  byId("rule-clip").hidden = !form.clip.checked;
  if (!ruling.isNamed && document.activeElement !== form.name) form.name.value = nameOfRule();
  const rule = ruleOfForm();
  setText(byId("rule-title"), ruling.edited ? `Rule ${ruling.edited}` : "New rule");
  setText(byId("rule-sentence"), ruleInWords(rule));
  setText(byId("rule-toml"), tomlOfRule(rule));
  const isChanged = isRuleChanged();
  const drafts = account.mayChange ? draftsOfRule(rule) : [];
  const noun = drafts.length ? NOUNS[drafts[0].kind] : "";
  byId("rule-apply").hidden = byId("rule-persist-part").hidden = !account.mayChange;
  byId("rule-delete").hidden = !account.mayChange || !ruling.edited || isGone();
  const isPersisting = byId("rule-persist").checked && !ruling.isPersisted;
  const hasWork = !ruling.edited || isChanged || isGone() || isPersisting || drafts.length > 0;
  setAttribute(byId("rule-apply"), "aria-disabled", String(ruling.isSending || !ruling.rules || !hasWork));
  setText(byId("rule-apply"), noun ? `Apply the ${noun}, then the rule` : "Apply");
  setAttribute(byId("rule-discard"), "aria-disabled", String(!isChanged));
  let standing = ruling.edited ? isChanged ? "You have changes that are not in force." : isGone() ? "Not in force." : "As in force." : "Not in force yet.";
  if (noun) standing += ` The ${noun} ${drafts[0].name} is drawn, but not applied either.`;
  setText(byId("rule-standing"), (byId("rule-done").textContent && !isChanged) || !account.mayChange ? "" : standing);
  setText(byId("rule-news"), ruling.news);
  setText(byId("rules-hint"), account.mayChange || !account.whyNot ? "" : `${account.whyNot} You can try a rule, and copy its text into the file of the daemon.`);
}

let shownRules = "";

function showRules() {
  const shown = JSON.stringify([ruling.rules, ruling.edited]);
  if (shown === shownRules) return;
  shownRules = shown;
  const focused = document.activeElement?.closest("#rules-list button")?.firstChild?.textContent;
  byId("rules-in-force").hidden = ruling.rules === null;
  const items = (ruling.rules ?? []).map((rule) => {
    const button = make("button", { type: "button", class: "zones-item", "aria-pressed": String(rule.name === ruling.edited) }, make("strong", { text: rule.name }), make("span", { text: orList(rule.streams ?? [], "all streams") }));
    button.addEventListener("click", async () => (await mayLeave(rule.name)) && editRule(rule));
    return make("li", {}, button);
  });
  byId("rules-list").replaceChildren(...items);
  byId("rules-none").hidden = items.length > 0;
  if (focused) [...byId("rules-list").querySelectorAll("button")].find((button) => button.firstChild.textContent === focused)?.focus();
}

/** Says what is wrong, at the fields where they are known; the first of them. @param {{path: (string | number)[], text: string}[]} problems @param {string} problem what is no matter of a field */
function showRuleProblems(problems, problem) {
  const form = ruleForm();
  for (const note of byId("rule-form").querySelectorAll(".rule-note")) note.remove();
  for (const field of byId("rule-form").querySelectorAll("[aria-invalid]")) {
    field.removeAttribute("aria-invalid");
    field.removeAttribute("aria-describedby");
  }
  const elsewhere = [];
  let first = null;
  for (const found of problems) {
    const key = String(found.path.at(found.path[0] === "rules" ? 2 : 0) ?? "");
    const field = { clip_seconds: form.before, between: form.from }[key] ?? (FORM_KEYS.includes(key) ? form[key] : null);
    if (!field?.setAttribute || field.closest("[hidden]")) {
      elsewhere.push(problemInWords(found));
      continue;
    }
    const id = `rule-note-${key}`;
    const note = byId(id) ?? make("p", { class: "problem rule-note", id });
    note.textContent = [note.textContent, problemInWords(found)].filter(Boolean).join(" ");
    (field.closest(".field") ?? field.closest(".checks")).after(note);
    setAttribute(field, "aria-invalid", "true");
    setAttribute(field, "aria-describedby", id);
    first ??= field;
  }
  setText(byId("rule-problem"), [problem, ...elsewhere].filter(Boolean).join(" "));
  const details = first?.closest("details");
  if (details) details.open = true;
  return first;
}

/* Trying and applying */

/** The streams of the rule as they are configured, and as they are drawn where that is not applied yet. */
async function streamsToTry() {
  const names = ruledStreams();
  return Promise.all(names.map(async (name, at) => {
    const draft = keptDraft(name)?.draft;
    const known = at < MAX_TRIED_STREAMS ? await getSettings(name) : null;
    return { name, ...known?.settings, ...(draft ? { zones: toSettings(draft).zones, lines: toSettings(draft).lines } : {}) };
  }));
}

async function tryRule() {
  const number = ++ruling.tries;
  const words = byId("rule-tried");
  byId("rule-alerts").replaceChildren();
  setText(words, "Reading the past …");
  const { clip_seconds: _clip, ...rule } = ruleOfForm();
  const { ok, answer, problem, problems } = await sendJson("/api/rules/try", { rule, streams: await streamsToTry(), seconds: Number(byId("rule-span").value) }, TRY_TIMEOUT_MILLISECONDS);
  if (number !== ruling.tries) return;
  showRuleProblems(problems, "");
  if (!ok) return setText(words, problem ? `It cannot be tried. ${problem}` : "It cannot be tried now.");
  const since = answer.since === null ? "There were no frames in that time." : `${answer.frames} frames since ${moment(answer.since)} were looked at.`;
  const easier = Object.entries(answer.easier).map(([how, count]) => `${count} ${how}`);
  const more = [answer.suppressed ? `${answer.suppressed} more were suppressed by the time after an alert.` : "", easier.length ? `With one condition fewer: ${easier.join(", ")}.` : ""].filter(Boolean);
  setText(words, [`It would have raised ${answer.count === 1 ? "1 alert" : `${answer.count} alerts`}. ${since}`, ...more].join(" "));
  const alerts = [...answer.alerts].reverse();
  byId("rule-alerts").replaceChildren(...alerts.map(makePastAlert));
  for (const [at, alert] of alerts.slice(0, MAX_THUMBNAILS).entries()) {
    if (number !== ruling.tries) return;
    await showPastObject(byId("rule-alerts").children[at], alert);
  }
}

function makePastAlert(alert) {
  const what = alert.label ?? (alert.count === null ? "none" : `${alert.count} at once`);
  const lasted = alert.cleared_at === null ? ", still true at the end" : lasting(alert.cleared_at - alert.raised_at, ", for ");
  const link = make("a", {}, make("div", { class: "shot" }), make("span", {}, make("strong", { text: moment(alert.raised_at) }), make("span", { text: `${what} on ${alert.stream}${lasted}` })));
  const [since, until] = [Math.floor(alert.raised_at - 5), Math.ceil((alert.cleared_at ?? alert.raised_at) + 300)];
  link.href = addressOf("review", "", { kind: "objects", stream: alert.stream, since: String(since), until: String(until) });
  return make("li", {}, link);
}

/** Finds the object of an alert in the review: its picture, and the way to it. */
async function showPastObject(item, alert) {
  const link = item.firstChild;
  const query = new URLSearchParams({ kind: "objects", stream: alert.stream, since: String(Math.floor(alert.raised_at - 5)), until: String(Math.ceil(alert.raised_at + 900)) });
  const found = alert.track_ids.length ? await getJson(`/api/review?${query}`) : null;
  const object = found?.items.find(({ event }) => event.epoch === alert.epoch && event.object.track_id === alert.track_ids[0]);
  if (!object) return;
  showPictureOf(link.firstChild, object, true);
  link.href = addressOf("review", "", { id: object.id, at: String(Math.round(timeOf(object))) });
}

/** Applies the zones or lines of a rule that are only drawn; false, and why, where one is refused. @param {ReturnType<typeof draftsOfRule>} drafts @param {boolean} persist */
async function applyDrafts(drafts, persist) {
  for (const { stream, kind, name } of drafts) {
    const { ok, problem } = await applyDrafted(stream, kind, name, persist);
    if (ok) continue;
    const link = make("a", { href: addressOf("zones", stream), text: `Zones of ${stream}` });
    byId("rule-problem").replaceChildren(`The ${NOUNS[kind]} ${name} is not applied, and so neither is the rule. ${problem} `, link);
    return false;
  }
  return true;
}

/** Sends the rules with one changed, added or left out. @param {any | null} rule null to delete the edited one @param {string | null} [before] what was done before someone else was faster */
async function sendRules(rule, before = null) {
  if (ruling.isSending || !account.mayChange || !ruling.rules) return;
  showRuleProblems([], "");
  if (rule && ruling.rules.some(({ name }) => name === rule.name && name !== ruling.edited)) return refuseRule([{ path: ["name"], text: "another rule has this name already; every rule needs a name of its own" }], "");
  ruling.isSending = true;
  showRule();
  const persist = byId("rule-persist").checked;
  const drafts = draftsOfRule(rule);
  const isApplied = await applyDrafts(drafts, persist);
  const rules = ruling.rules.flatMap((each) => (each.name === ruling.edited ? (rule ? [rule] : []) : [each]));
  if (rule && !rules.includes(rule)) rules.push(rule);
  const { ok, problem, problems, isConflict } = isApplied ? await applyChange({ rules, version: ruling.version, persist }) : { ok: false, problem: "", problems: [], isConflict: false };
  ruling.isSending = false;
  if (!isApplied) return showRule();
  const done = drafts.length ? `The ${NOUNS[drafts[0].kind]} ${drafts[0].name} is applied, the rule is not.` : "";
  if (isConflict) {
    await readRules();
    // Where others have changed other rules alone, this one still fits among them.
    if (!ruling.news && before === null) return sendRules(rule, done);
    return refuseRule([], `${before || done} Someone else was faster: your change of the rules is not made yet.`.trim());
  }
  if (!ok) {
    const isOwn = ({ path }) => path[0] === "rules" && (path[1] === rules.indexOf(rule) || rules[path[1]]?.name === rule?.name);
    const others = problems.filter((found) => found.path[0] === "rules" && rules[found.path[1]] && !isOwn(found)).map((found) => `The rule ${rules[found.path[1]].name}: ${problemInWords(found)}`);
    const own = problems.filter((found) => found.path[0] !== "rules" || isOwn(found));
    return refuseRule(own, [before || done, ...others].join(" ").trim() || (own.length ? "" : problem));
  }
  const lasts = persist ? "kept over restarts" : "until the daemon is restarted";
  const name = rule?.name ?? ruling.edited;
  if (rule) Object.assign(ruling, { edited: name, base: null, news: "", isNamed: true, filled: JSON.stringify(rule) });
  else fillForm(NEW_RULE, "");
  await readRules();
  setText(byId("rule-done"), rule ? `In force, ${lasts}.` : `${name} is deleted, ${lasts}.`);
  byId("rule-done-link").hidden = !rule;
  byId("rule-review").href = addressOf("review", "", { kind: "alerts", rule: name });
  keepForm();
  showRule();
  byId(rule ? "rule-done-link" : "rule-done").scrollIntoView({ block: "nearest" });
}

/** Says why a rule is not in force, where it can be seen. */
function refuseRule(problems, problem) {
  const field = showRuleProblems(problems, problem);
  showRule();
  if (field) field.focus();
  else byId("rule-problem").scrollIntoView({ block: "nearest" });
}

async function deleteRule() {
  const name = ruling.edited;
  if (await askFirst(`Delete the rule ${name}?`, "It raises no more alerts. Those that it has raised stay in the review.", "Delete it")) await sendRules(null);
}

function initRules() {
  const form = byId("rule-form");
  byId("rule-days").append(...RULE_DAYS.map(([value, text]) => make("label", {}, make("input", { type: "checkbox", value }), text)));
  const changed = ({ target }) => {
    if (target.name === "name") ruling.isNamed = target.value !== "";
    if (target.id !== "rule-persist") {
      setText(byId("rule-done"), "");
      byId("rule-done-link").hidden = true;
      showRuleProblems([], "");
    }
    compareWithOthers();
    showRule();
    keepForm();
  };
  const isOff = (button) => button.getAttribute("aria-disabled") === "true";
  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  form.addEventListener("submit", (event) => (event.preventDefault(), isOff(byId("rule-apply")) || sendRules(ruleOfForm())));
  byId("rule-delete").addEventListener("click", deleteRule);
  byId("rule-discard").addEventListener("click", () => isOff(byId("rule-discard")) || discardRule());
  byId("rule-dialog-no").addEventListener("click", () => byId("rule-dialog").close(""));
  byId("rule-dialog-form").addEventListener("submit", (event) => (event.preventDefault(), byId("rule-dialog").close("yes")));
  addEventListener("beforeunload", (event) => keptForm().isChanged && event.preventDefault());
  byId("rules-new").addEventListener("click", async () => {
    if (!(await mayLeave(""))) return;
    fillForm(NEW_RULE, "");
    keepForm();
    showRules();
    showRule();
    form.elements.streams.focus();
  });
  byId("rule-try").addEventListener("click", tryRule);
  byId("rule-copy").addEventListener("click", () => copyText(byId("rule-toml").textContent ?? "", byId("rule-copied")));
}
