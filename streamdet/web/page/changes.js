/* What the page may change of the daemon, and how it asks for it. */

const CHANGE_TIMEOUT_MILLISECONDS = 20000;
const TRY_TIMEOUT_MILLISECONDS = 120000;

/** Who looks at the page, and what the server lets them do. */
const account = {
  /** Whether the server says how streams and rules are configured. */
  reads: false,
  mayChange: false,
  /** Why nothing can be changed here. */
  whyNot: "",
  token: "",
};

/** Asks the server who looks at the page. */
async function readAccount() {
  const answer = await getJson("/api/account");
  if (!answer) return;
  Object.assign(account, { reads: answer.may_read === true, mayChange: answer.may_change === true, whyNot: sentenceOf(answer.why_not ?? ""), token: answer.csrf_token ?? "" });
}

/** How a stream is configured; null where the server does not say. @param {string} stream @returns {Promise<any>} */
const getSettings = (stream) => (account.reads ? getJson(`/api/streams/${encodeURIComponent(stream)}/settings`) : Promise.resolve(null));

/** The rules in force; null where the server does not say. @returns {Promise<any>} */
const getRules = (asksWhatIsKept = false) => (account.reads ? getJson(`/api/rules${asksWhatIsKept ? "?keeps=1" : ""}`) : Promise.resolve(null));

/** What the keys of the configuration are called in the forms, as the subject of a sentence. */
const FIELD_NAMES = {
  name: "The name", url: "The address", labels: "The labels", min_score: "The score", min_size: "The least height", max_size: "The greatest height",
  polygon: "The outline", points: "The line", anchor: "What counts of an object", dwell_seconds: "The list of visits", loiter_seconds: "The time of loitering",
  zones: "The zones", lines: "The lines", masks: "The masks", streams: "The streams", zone: "The zone", line: "The line", direction: "The direction", at_least: "The number at once",
  for_seconds: "The time", none_for_seconds: "The time without any", cooldown_seconds: "The time after an alert", between: "The time of day", days: "The days",
  picture: "The picture", clip_seconds: "The clip",
};
const KEYS_IN_TEXTS = new RegExp(`\\b(?:${Object.keys(FIELD_NAMES).filter((key) => key.includes("_")).join("|")})\\b`, "g");

/** What one entry of a list is called. */
const ENTRY_NAMES = { streams: "The stream", labels: "The label", days: "The day" };

/** What is wrong, as a sentence that names the field of the form. @param {{path: (string | number)[], text: string}} problem */
function problemInWords({ path, text }) {
  const key = path.findLast((part) => typeof part === "string" && part in FIELD_NAMES) ?? "";
  const name = text.startsWith("is ") ? ENTRY_NAMES[key] ?? FIELD_NAMES[key] : FIELD_NAMES[key];
  const words = text.replace(KEYS_IN_TEXTS, (found) => FIELD_NAMES[found].toLowerCase());
  return sentenceOf(!name || /^(?:another|the|there|zones|lines|masks) /.test(text) ? words : `${name} ${words}`);
}

/**
 * Sends something as JSON.
 * @param {string} path @param {any} body @param {number} [timeoutMilliseconds]
 * @returns {Promise<{ok: boolean, answer: any, problem: string, problems: {key: string | null, path: (string | number)[], text: string}[], isConflict: boolean}>}
 */
async function sendJson(path, body, timeoutMilliseconds = CHANGE_TIMEOUT_MILLISECONDS) {
  try {
    const answer = await fetch(path, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-CSRF-Token": account.token },
      body: JSON.stringify(body),
      signal: AbortSignal.timeout(timeoutMilliseconds),
    });
    if (answer.status === 401) {
      noteLoggedOut();
      return { ok: false, answer: null, problem: "You are logged out. Nothing has changed: log in, and try again.", problems: [], isConflict: false };
    }
    const found = await answer.json();
    const problems = answer.ok ? [] : found.problems ?? [];
    const problem = problems.map(problemInWords).join(" ");
    return { ok: answer.ok, answer: found, problem: answer.ok ? "" : problem || `The server answers ${answer.status}.`, problems, isConflict: answer.status === 409 && found.code === "changed" };
  } catch {
    return { ok: false, answer: null, problem: "The server of this page does not answer. Nothing is known to have changed; try again.", problems: [], isConflict: false };
  }
}

/** Changes something of the daemon. @param {any} change as `/api/changes` takes it */
const applyChange = (change) => sendJson("/api/changes", change);

/** Copies a text, and says so beside the button. @param {string} text @param {Element} words */
async function copyText(text, words) {
  try {
    await navigator.clipboard.writeText(text);
    setText(words, "Copied.");
  } catch {
    setText(words, "This browser does not allow it here: select the text and copy it.");
  }
}
