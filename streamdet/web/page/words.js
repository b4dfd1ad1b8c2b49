/* Plain words for what the daemon says in one. */

const STATES = { up: "Up", connecting: "Connecting", stalled: "Stalled", down: "Down", unplaced: "Unplaced", unheard: "Not heard of" };

/** True of every kind of source: cameras and other servers, files and devices. The daemon's own detail names what it has tried. */
const REASONS = {
  refused: "Nothing listens at its address, or what is there refuses.",
  unauthorized: "Access is denied: check user name and password; of a file or device, what the daemon's user may read.",
  not_found: "There is nothing at its address: check the path in its URL, or the name of the file or device.",
  timeout: "Nothing came from it in time: check that it runs, and its network or cable.",
  dns: "Its name was not found: check the host in its URL, and DNS.",
  tls: "The encrypted connection failed: check its certificate.",
  no_video: "It is there, but gives no video.",
  unsupported_codec: "Its video has a format that cannot be decoded here.",
  ended: "Its video has come to an end.",
  paused: "Someone has paused it: streamdet streams resume starts it again.",
  decode_error: "What comes from it cannot be decoded: it is damaged, or no video.",
  overload: "More pictures come from it than one stream may have, or it takes a whole core to decode.",
  internal_error: "A bug in streamdet hit this stream; the log of the daemon has the details.",
};

const DROPS = {
  superseded: "overload: replaced by newer ones",
  stale: "overload: too old",
  rate_limited: "above max_fps, as configured",
  gated: "nothing new in them: motion gate",
  decode_error: "not usable",
  internal_error: "lost to an error",
  damaged: "damaged on the way",
  not_decoded: "not decoded, as configured",
  shutdown: "at the end",
};

const STAGES = {
  input: "Input",
  preprocess: "Preprocess",
  features: "Features",
  proposals: "Proposals",
  roi_pool: "RoI pool",
  classify: "Classify",
  postprocess: "Postprocess",
};

/** As configured, and no loss that anyone should mind. */
const WANTED_DROPS = new Set(["rate_limited", "not_decoded", "gated", "shutdown"]);
const SHORT_DROPS = { superseded: "overload", stale: "overload", rate_limited: "max_fps", not_decoded: "decode", gated: "the motion gate", decode_error: "decode errors", damaged: "damage on the way", internal_error: "errors" };

/**
 * Why fewer frames go out than come in, losses first, as a narrow tile has room for one reason; empty where nothing is dropped.
 * @param {Record<string, number>} drops frames per second by reason
 * @returns {{text: string, isLoss: boolean}}
 */
function whyFewer(drops) {
  /** @type {Record<string, number>} */
  const sums = {};
  const losses = new Set();
  for (const [reason, fps] of Object.entries(drops)) {
    const why = SHORT_DROPS[reason] ?? reason;
    sums[why] = (sums[why] ?? 0) + fps;
    if (!WANTED_DROPS.has(reason)) losses.add(why);
  }
  const parts = Object.entries(sums).sort((a, b) => Number(losses.has(b[0])) - Number(losses.has(a[0])) || b[1] - a[1]);
  return { text: parts.map(([why, fps], at) => `${perSecond(fps)} ${at ? "" : "fps left out "}by ${why}`).join(", "), isLoss: losses.size > 0 };
}

/** @param {string} state */
const stateWord = (state) => STATES[state] ?? state;

/** What a stream does, in a word or two. @param {{state: string, reason: string | null}} row */
function whatNow(row) {
  if (row.reason === "paused") return "Paused";
  return row.state === "connecting" && row.reason ? "Trying again" : stateWord(row.state);
}

/** Streams that rest because they are paused, or because their film is over: that is no problem. */
const isResting = (row) => row.state === "down" && (row.reason === "paused" || row.reason === "ended");

/** @param {number} seconds */
const lastSeen = (seconds) => `Last seen ${duration(seconds)} ago`;

/** The same, and for how long it has not been up: a try that fails as the one before begins nothing new. */
function notUpFor(row) {
  if (row.since === null) return whatNow(row);
  const since = duration(serverNow() - row.since);
  return row.state === "connecting" && row.reason ? `Trying again after ${since}` : `${whatNow(row)} for ${since}`;
}

/**
 * Why a stream is not up, in a sentence.
 * @param {{state: string, reason: string | null, detail: string}} row
 */
function whyNot(row) {
  if (row.reason) return REASONS[row.reason] ?? `The reason is given as "${row.reason}".`;
  if (row.state === "stalled") return "It is connected, but no pictures come.";
  if (row.state === "connecting") return "Waiting for its first picture.";
  if (row.state === "unplaced") return `No node watches it: it ${row.detail}.`;
  if (row.state === "unheard") return `${row.node} is to watch it; nothing has come from there yet.`;
  return row.detail;
}

/** So long a move is worth a word. */
const RECENT_MOVE_SECONDS = 60;

/** Which node of a cluster watches a stream, and from where it has just moved there; empty for a single daemon. */
function whereOf(row) {
  if (!row.node || row.state === "unplaced") return "";
  if (!row.is_heard) return `waiting for ${row.node}`;
  const since = row.moved_from ? serverNow() - row.moved_at : Infinity;
  return `on ${row.node}${since < RECENT_MOVE_SECONDS ? ` for ${duration(since)}, before on ${row.moved_from}` : ""}`;
}

/** As a sentence. @param {string} text */
const sentenceOf = (text) => (text ? `${text[0].toUpperCase()}${text.slice(1)}${/[.?!]$/.test(text) ? "" : "."}` : "");

/** @param {number | null | undefined} value */
function perSecond(value) {
  if (value === null || value === undefined) return "–";
  return value >= 99.95 ? value.toFixed(0) : value.toFixed(1);
}

/** @param {number | null | undefined} value */
function milliseconds(value) {
  if (value === null || value === undefined) return "–";
  if (Math.abs(value) >= 10000) return `${(value / 1000).toFixed(0)} s`;
  if (Math.abs(value) >= 1000) return `${(value / 1000).toFixed(1)} s`;
  return `${value.toFixed(Math.abs(value) < 10 ? 1 : 0)} ms`;
}

/** @param {number} score 0 to 1 */
const percent = (score) => `${Math.round(score * 100)} %`;

/** @param {number} seconds */
function duration(seconds) {
  const whole = Math.max(0, Math.round(seconds));
  if (whole < 60) return `${whole} s`;
  if (whole < 3600) return `${Math.floor(whole / 60)} min`;
  if (whole < 86400) return `${Math.floor(whole / 3600)} h ${Math.floor((whole % 3600) / 60)} min`;
  return `${Math.floor(whole / 86400)} d ${Math.floor((whole % 86400) / 3600)} h`;
}

/**
 * For how long something lasted, with what stands before it; nothing for what takes no time, as a crossing does.
 * @param {number} seconds @param {string} [before]
 */
const lasting = (seconds, before = "") => (seconds < 0.05 ? "" : before + (seconds < 1 ? "less than 1 s" : duration(seconds)));

const timeOfDay = new Intl.DateTimeFormat([], { timeStyle: "medium", hourCycle: "h23" });

/** Time of day in the browser's own zone. @param {number} at Unix time in seconds */
const clock = (at) => timeOfDay.format(at * 1000);

/** Of the labels of the embedded weights; others may be of any language. */
const PLURALS = new Map(Object.entries({ person: "people", bicycle: "bicycles", car: "cars", motorcycle: "motorcycles", bus: "buses", truck: "trucks" }));

/** @param {number} count @param {string} label */
const several = (count, label) => (count === 1 ? `1 ${label}` : PLURALS.has(label) ? `${count} ${PLURALS.get(label)}` : `${count} × ${label}`);

/** "3 people, 1 car", the most frequent first. @param {Record<string, number>} labels */
function counted(labels) {
  const entries = Object.entries(labels).sort((a, b) => b[1] - a[1]);
  return entries.map(([label, count]) => several(count, label)).join(", ");
}

/** @param {{label: string}[]} objects @returns {Record<string, number>} */
function countLabels(objects) {
  /** @type {Record<string, number>} */
  const labels = Object.create(null);
  for (const { label } of objects) labels[label] = (labels[label] ?? 0) + 1;
  return labels;
}
