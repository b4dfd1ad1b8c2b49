/* Rules: those in force, a form for one of them, what it would have raised in the past, and its text for the file. */

const RULE_DAYS = [["mon", "Monday"], ["tue", "Tuesday"], ["wed", "Wednesday"], ["thu", "Thursday"], ["fri", "Friday"], ["sat", "Saturday"], ["sun", "Sunday"]];
const FORM_KEY = "streamdet.rule";
const MAX_NAME_OF_RULE = 64;
const MAX_THUMBNAILS = 12;
const MAX_TRIED_STREAMS = 16;
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
  /** Whether someone has named it. */
  isNamed: false,
  /** Published outlines by stream. @type {Record<string, any>} */
  shapes: {},
  isSending: false,
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
  close: keepForm,
  update: offerStreams,
});

async function openRules(_what, query) {
  if (query.has("stream") || query.has("zone") || query.has("line")) {
    const [stream, zone, line] = ["stream", "zone", "line"].map((key) => query.get(key) ?? "");
    const labels = rows.get(stream)?.labels ?? {};
    fillForm({ ...NEW_RULE, streams: stream, kind: line ? "crossing" : "presence", zone, line, labels: "person" in labels ? "person" : "" }, "");
    // The form goes on from here, also when the page is loaded again.
    history.replaceState(null, "", "#/rules");
  } else restoreForm();
  offerStreams();
  showRule();
  await readAccount();
  await readRules();
}

async function readRules() {
  const [known, shapes] = [await getRules(), await getJson("/api/shapes")];
  if (shapes) ruling.shapes = shapes;
  if (known) Object.assign(ruling, { rules: known.rules, version: known.version });
  showRules();
  showRule();
}

/* The form */

/** @param {any} values by field @param {string} edited @param {Record<string, any>} [others] */
function fillForm(values, edited, others = {}) {
  Object.assign(ruling, { edited, others, isNamed: Boolean(values.name) });
  const form = ruleForm();
  for (const [key, value] of Object.entries(values)) {
    if (key === "days") for (const box of byId("rule-days").querySelectorAll("input")) box.checked = value.includes(box.value);
    else if (typeof value === "boolean") form[key].checked = value;
    else {
      if (form[key].tagName === "SELECT" && value && ![...form[key].options].some((option) => option.value === value)) form[key].append(make("option", { value, text: value }));
      form[key].value = value;
    }
  }
  for (const id of ["rule-problem", "rule-done", "rule-tried", "rule-copied"]) setText(byId(id), "");
  byId("rule-done-link").hidden = true;
  byId("rule-alerts").replaceChildren();
  ruling.tries++;
}

function valuesOfForm() {
  const form = ruleForm();
  const values = Object.fromEntries(Object.entries(NEW_RULE).filter(([key]) => key !== "days").map(([key, value]) => [key, typeof value === "boolean" ? form[key].checked : form[key].value]));
  return { ...values, days: [...byId("rule-days").querySelectorAll("input:checked")].map((box) => box.value) };
}

function keepForm() {
  try {
    sessionStorage.setItem(FORM_KEY, JSON.stringify({ values: valuesOfForm(), edited: ruling.edited, others: ruling.others, isNamed: ruling.isNamed }));
  } catch {
    // Private windows of some browsers keep nothing.
  }
}

function restoreForm() {
  try {
    const { values, edited, others, isNamed } = JSON.parse(sessionStorage.getItem(FORM_KEY) ?? "{}");
    fillForm({ ...NEW_RULE, ...values }, edited ?? "", others ?? {});
    ruling.isNamed = isNamed === true;
  } catch {
    fillForm(NEW_RULE, "");
  }
}

/** A rule of the configuration as the form has it. @param {any} rule */
function editRule(rule) {
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
  }, rule.name, others);
  showRules();
  showRule();
  announce(`Editing ${rule.name}.`);
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

function showRule() {
  const form = ruleForm();
  offerShapes();
  for (const field of byId("rule-form").querySelectorAll("[data-of]")) field.hidden = !field.dataset.of.split(" ").includes(form.kind.value);
  byId("rule-clip").hidden = !form.clip.checked;
  if (!ruling.isNamed && document.activeElement !== form.name) form.name.value = nameOfRule();
  const rule = ruleOfForm();
  setText(byId("rule-title"), ruling.edited ? `Rule ${ruling.edited}` : "New rule");
  setText(byId("rule-sentence"), ruleInWords(rule));
  setText(byId("rule-toml"), tomlOfRule(rule));
  byId("rule-apply").hidden = byId("rule-persist-part").hidden = !account.mayChange;
  byId("rule-delete").hidden = !account.mayChange || !ruling.edited;
  setAttribute(byId("rule-apply"), "aria-disabled", String(ruling.isSending));
  setText(byId("rules-hint"), account.mayChange || !account.whyNot ? "" : `${account.whyNot} You can try a rule, and copy its text into the file of the daemon.`);
}

function showRules() {
  byId("rules-in-force").hidden = ruling.rules === null;
  const items = (ruling.rules ?? []).map((rule) => {
    const button = make("button", { type: "button", class: "zones-item", "aria-pressed": String(rule.name === ruling.edited) }, make("strong", { text: rule.name }), make("span", { text: orList(rule.streams ?? [], "all streams") }));
    button.addEventListener("click", () => editRule(rule));
    return make("li", {}, button);
  });
  byId("rules-list").replaceChildren(...items);
  byId("rules-none").hidden = items.length > 0;
}

/** Says what is wrong, at the fields where it is known. */
function showRuleProblems(problems, problem) {
  const form = ruleForm();
  for (const field of byId("rule-form").querySelectorAll("[aria-invalid]")) field.removeAttribute("aria-invalid");
  for (const { path } of problems) {
    const key = String(path.at(path[0] === "rules" ? 2 : 0) ?? "");
    const field = { clip_seconds: form.before, between: form.from }[key] ?? form[key];
    field?.setAttribute?.("aria-invalid", "true");
  }
  const sentence = problems.map(({ path, text }) => [...path.slice(path[0] === "rules" ? 2 : 0).map((part) => (typeof part === "number" ? `#${part + 1}` : part)), text].join(" ")).join("; ");
  setText(byId("rule-problem"), sentence || problem);
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
  if (!ok) return setText(words, problem ? `It cannot be tried: ${problem}` : "It cannot be tried now.");
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

/** Sends the rules with one changed, added or left out. @param {any | null} rule null to delete the edited one */
async function sendRules(rule) {
  if (ruling.isSending || !account.mayChange || !ruling.rules) return;
  const drafted = rule?.zone ?? rule?.line;
  const key = rule?.line ? "lines" : "zones";
  const missing = drafted ? ruledStreams().filter((stream) => !(ruling.shapes[stream]?.[key] ?? []).some(({ name }) => name === drafted) && draftedNames(stream, /** @type {any} */ (key)).includes(drafted)) : [];
  if (missing.length) {
    const link = make("a", { href: addressOf("zones", missing[0]), text: `Zones of ${missing[0]}` });
    return byId("rule-problem").replaceChildren(`${drafted} is drawn, but not applied yet: apply it under `, link, " first. What you have typed here stays.");
  }
  ruling.isSending = true;
  showRule();
  const persist = byId("rule-persist").checked;
  const at = ruling.rules.findIndex(({ name }) => name === ruling.edited);
  const rules = ruling.rules.flatMap((each, number) => (number === at ? (rule ? [rule] : []) : [each]));
  if (rule && at < 0) rules.push(rule);
  const place = rule ? rules.indexOf(rule) : -1;
  const { ok, problem, problems, isConflict } = await applyChange({ rules, version: ruling.version, persist });
  ruling.isSending = false;
  if (isConflict) {
    await readRules();
    setText(byId("rule-problem"), "Someone else has changed the rules meanwhile. They are read again; press Apply again to change yours among them.");
    return showRule();
  }
  const own = problems.filter(({ path }) => path[0] !== "rules" || path[1] === place);
  showRuleProblems(own, problem);
  if (!ok) return showRule();
  const lasts = persist ? "kept over restarts" : "until the daemon is restarted";
  const name = rule?.name ?? ruling.edited;
  if (rule) ruling.edited = name;
  else fillForm(NEW_RULE, "");
  ruling.isNamed = Boolean(rule);
  await readRules();
  setText(byId("rule-done"), rule ? `In force, ${lasts}.` : `${name} is deleted, ${lasts}.`);
  byId("rule-done-link").hidden = !rule;
  byId("rule-review").href = addressOf("review", "", { kind: "alerts", rule: name });
  keepForm();
  return showRule();
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
    showRule();
    keepForm();
  };
  form.addEventListener("input", changed);
  form.addEventListener("change", changed);
  form.addEventListener("submit", (event) => (event.preventDefault(), sendRules(ruleOfForm())));
  byId("rule-delete").addEventListener("click", () => sendRules(null));
  byId("rules-new").addEventListener("click", () => {
    fillForm(NEW_RULE, "");
    keepForm();
    showRules();
    showRule();
    form.elements.streams.focus();
  });
  byId("rule-try").addEventListener("click", tryRule);
  byId("rule-copy").addEventListener("click", () => copyText(byId("rule-toml").textContent ?? "", byId("rule-copied")));
}
