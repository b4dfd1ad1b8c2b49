/* Asks the server for what is new, again and again. The server keeps nothing for us, so nothing can pile up. */

const MIN_INTERVAL_MILLISECONDS = 90;
const CALM_INTERVAL_MILLISECONDS = 1000;
const ANSWER_TIMEOUT_MILLISECONDS = 10000;
const RETRY_MILLISECONDS = 1000;

/** What of the server's numbers we have. */
const have = { instance: "", revision: 0, sample: 0, event: 0 };
/** The newest picture that we have of each stream. @type {Map<string, number>} */
const havePictures = new Map();
let question = new AbortController();

/** Ends the present question: what we want to know has changed. */
function askAgain() {
  question.abort();
}

/** The list of events begins again, under another filter. */
function forgetEvents() {
  have.event = 0;
  have.revision = 0;
  askAgain();
}

/**
 * Repeats its request while the page is visible.
 * @param {() => {pictures: string[], filter: object, detail: string | null, drops: boolean, calm: boolean}} wants
 * @param {(answer: any, bytes: Uint8Array) => Promise<void>} show
 * @param {(problem: string) => void} tell
 */
async function askForEver(wants, show, tell) {
  for (;;) {
    await untilVisible();
    await untilLoggedIn();
    const began = performance.now();
    const wanted = wants();
    try {
      const buffer = await ask(wanted);
      const { head, bytes } = unpack(buffer);
      noteLoggedIn();
      note(head, began);
      await show(head, bytes);
      discard(buffer);
      tell("");
    } catch (error) {
      if (!question.signal.aborted) {
        tell(explain(error));
        await sleep(RETRY_MILLISECONDS);
      }
    }
    const interval = wanted.calm ? CALM_INTERVAL_MILLISECONDS : MIN_INTERVAL_MILLISECONDS;
    if (!question.signal.aborted) await pause(began + interval - performance.now());
  }
}

async function ask(wanted) {
  question = new AbortController();
  const pictures = Object.fromEntries(wanted.pictures.map((name) => [name, havePictures.get(name) ?? 0]));
  const answer = await fetch("/api/updates", {
    method: "POST",
    headers: { "Content-Type": "application/json" },
    body: JSON.stringify({ ...have, pictures, filter: wanted.filter, detail: wanted.detail, drops: wanted.drops, review: wanted.review }),
    signal: AbortSignal.any([question.signal, AbortSignal.timeout(ANSWER_TIMEOUT_MILLISECONDS)]),
  });
  if (answer.status === 401) {
    noteLoggedOut();
    question.abort(); // that is no fault of the server
  }
  if (!answer.ok) throw new Error(`the server answers ${answer.status}`);
  return answer.arrayBuffer();
}

/** @param {ArrayBuffer} buffer four bytes of length, a JSON object, pictures */
function unpack(buffer) {
  const length = new DataView(buffer).getUint32(0);
  const head = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 4, length)));
  return { head, bytes: new Uint8Array(buffer, 4 + length) };
}

/** Remembers what we have now. @param {any} head @param {number} sentAt when it was asked for, by the clock of this page */
function note(head, sentAt) {
  if (head.instance !== have.instance) {
    Object.assign(have, { instance: head.instance, sample: 0, event: 0 });
    havePictures.clear();
    forgetCrossings();
  }
  noteCrossing(head, sentAt);
  for (const shot of head.pictures) shot.takenAt = oursOf(head.clock - shot.age_seconds);
  have.revision = head.revision;
  if (head.overview) have.sample = head.overview.sample;
  if (head.event !== undefined) have.event = head.event;
  for (const { stream, id } of head.pictures) havePictures.set(stream, id);
}

/** Of pictures, before garbage is worth collecting. */
const GARBAGE_BYTES = 2 << 20;
/** Chromium looks for garbage when so much has been allocated beside its heap. */
const PRESSURE_BYTES = 80 << 20;
let receivedBytes = 0;

/**
 * Frees the memory of an answer now, and from time to time that of what its pictures have left behind. Chromium does not
 * count blobs and decoders as memory of the page, so that they stay for minutes, some 40 MB on a wall of twelve. Pages
 * of the memory allocated here are never touched, so they take none.
 * @param {ArrayBuffer} buffer
 */
function discard(buffer) {
  receivedBytes += buffer.byteLength;
  buffer.transfer(0);
  if (receivedBytes < GARBAGE_BYTES || !("userAgentData" in navigator)) return;
  receivedBytes = 0;
  try {
    new ArrayBuffer(PRESSURE_BYTES).transfer(0);
  } catch {
    // There is no room for it, which is reason enough to collect.
  }
}

function explain(error) {
  const why = error instanceof Error && error.message.startsWith("the server") ? ` (${error.message})` : "";
  return `The server of this page does not answer${why}. Trying again …`;
}

/** Waits until the page can be seen: a page in the background costs no one anything. */
function untilVisible() {
  if (!document.hidden) return Promise.resolve();
  return new Promise((done) => document.addEventListener("visibilitychange", done, { once: true }));
}

/** Waits, at most until the question is asked again. @param {number} forMilliseconds */
async function pause(forMilliseconds) {
  if (forMilliseconds <= 0) return;
  const { signal } = question;
  await new Promise((done) => {
    const timer = setTimeout(done, forMilliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), done(undefined)), { once: true });
  });
}
