/* What is known of the streams, and whether it is of now. */

const SAMPLES = 90;

/** All streams as the server last sent them, by name. @type {Map<string, any>} */
const rows = new Map();
/** Samples of each stream: [fps in, fps out, latency in ms], the newest last. @type {Map<string, any[]>} */
const histories = new Map();

/** What is shown as live is not older than this; what is older is visibly so. */
const LIVE_SECONDS = 2;
/** How often ages are looked at. */
const LOOK_MILLISECONDS = 250;
/** What is not older than this is live until the next look. */
const STILL_LIVE_SECONDS = LIVE_SECONDS - LOOK_MILLISECONDS / 1000;
/** So long the server may be silent; it answers at least once a second. */
const SERVER_SILENCE_SECONDS = 3;
/** States are repeated every ten seconds by default: when none has come for so long, there are no streams, most likely. */
const FIRST_STATES_SECONDS = 12;
/**
 * When the server answered last, whether it hears the daemon and where, whether the daemon says that it has no streams, for
 * how long it has sent nothing, and what is known of the nodes, where these are those of a cluster.
 */
const heard = { at: performance.now(), daemon: false, endpoint: "", hasNone: false, quietSeconds: 0, cluster: /** @type {any} */ (null) };
/** Frames per second that are dropped of each stream, by reason, as far as known. @type {Map<string, Record<string, number>>} */
const drops = new Map();
/** Server's clock minus ours, in seconds: states begin at times of the server. */
let clockDifference = 0;

/** Unix time in seconds by the server's clock. */
const serverNow = () => Date.now() / 1000 + clockDifference;

/** @param {number} at by the clock of this page, in milliseconds */
const secondsSince = (at) => (performance.now() - at) / 1000;

/** Whether what we know of the daemon is of now. */
const isHeard = () => heard.daemon && secondsSince(heard.at) < SERVER_SILENCE_SECONDS;

/** Whether the daemon has no streams, as far as can be known; else they may not have been heard of yet. */
const hasNoStreams = () => heard.daemon && !rows.size && (heard.hasNone || (!heard.cluster && heard.quietSeconds >= FIRST_STATES_SECONDS));

/** Whether the state of a stream is of now: the daemon is heard, and a stream that is up sends at its usual pace. */
function isLive(row) {
  if (!isHeard() || !row.is_heard) return false;
  if (row.state !== "up" || row.takenAt === null) return true;
  const pace = row.fps_out > 0 ? 3 / row.fps_out : 0;
  return secondsSince(row.takenAt) <= Math.max(STILL_LIVE_SECONDS, pace);
}

const isUp = (row) => row.state === "up" && isLive(row);
const isProblem = (row) => !isUp(row) && !(isResting(row) && isHeard());

/**
 * Takes the rows of an overview.
 * @param {any[]} streams sorted by name
 * @param {boolean} fresh whether histories begin again
 * @param {number} at when they were made, by the clock of the server
 */
function updateRows(streams, fresh, at) {
  rows.clear();
  for (const row of streams) {
    row.takenAt = row.age_seconds === null ? null : oursOf(at - row.age_seconds);
    const before = fresh ? [] : histories.get(row.name) ?? [];
    histories.set(row.name, [...before, ...row.samples].slice(-SAMPLES));
    rows.set(row.name, row);
  }
  for (const name of histories.keys()) if (!rows.has(name)) histories.delete(name);
}

/** @param {Record<string, Record<string, number>>} fresh by stream and reason */
function updateDrops(fresh) {
  drops.clear();
  for (const [name, reasons] of Object.entries(fresh)) drops.set(name, reasons);
}
