/* Adding a stream: the commands for an address and, for operators, a form that tries it and adds it. What is typed is
 * kept nowhere; a login is sent to the daemon by those two alone, and shown in no command. */

const ADDRESS = /^(rtsps?|https?):\/\/(?:(?<login>[^/@\s]*)@)?(?<rest>[^/@\s]+\S*)$/i;
const DEVICE = /^(?:\/dev\/video[0-9]+|(?:file:\/\/)?\/\S.*)$/;
const EXAMPLE = "rtsp://192.0.2.7/stream1";
const PROBE_TIMEOUT_MILLISECONDS = 40000;

/**
 * Whether the daemon is asked now, and the number of that request: an answer to another address is not shown. Which
 * stream was added last, and when.
 */
const adding = { isSending: false, request: 0, name: "", at: 0 };

/**
 * What to run for an address.
 * @param {string} typed
 * @param {string} name
 * @param {boolean} hasLogin whether a login was typed beside it
 * @returns {{problem: string, add: string, init: string, hint: string}}
 */
function commandsFor(typed, name, hasLogin) {
  const text = typed.trim();
  const { login, rest } = ADDRESS.exec(text)?.groups ?? {};
  const isKnown = rest !== undefined || DEVICE.test(text);
  const problem = text && !isKnown ? `An address looks like ${EXAMPLE}, or is /dev/video0 or the path of a film.` : "";
  const stream = streamName(typed, name);
  const bare = isKnown && login !== undefined ? `${text.split("://")[0]}://${rest}` : isKnown ? text : EXAMPLE;
  const init = `streamdet init ${quoted(bare)}`;
  if (login === undefined && !hasLogin) return { problem, add: `streamdet streams add ${stream} ${quoted(bare)} --persist`, init, hint: "" };
  const hint = "The login is left out of the commands, where others of that machine could see it: type the whole address when the first one waits for it; the second one asks for user and password.";
  return { problem, add: `streamdet streams add ${stream} --url-from-stdin --persist`, init, hint };
}

/** The name that was typed, or one after the host. @param {string} typed @param {string} name */
const streamName = (typed, name) => nameFor(name || (ADDRESS.exec(typed.trim())?.groups?.rest ?? "").split(/[/:?]/)[0]);

/** A name as a stream may have it. @param {string} text */
const nameFor = (text) => text.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+|-+$/g, "").slice(0, 64) || "front-door";

/** A word for a shell. @param {string} text */
const quoted = (text) => (/^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

/** The address with the login that was typed beside it. */
function urlOfForm() {
  const [url, user, password] = ["add-url", "add-user", "add-password"].map((id) => byId(id).value);
  const { login, rest } = ADDRESS.exec(url.trim())?.groups ?? {};
  if (!user || rest === undefined || login !== undefined) return url.trim();
  return `${url.trim().split("://")[0]}://${encodeURIComponent(user)}:${encodeURIComponent(password)}@${rest}`;
}

/** Moves a login out of the address into fields of its own: everybody who looks at the screen can read the address. */
function moveLogin() {
  const field = byId("add-url");
  const { login, rest } = ADDRESS.exec(field.value.trim())?.groups ?? {};
  if (!login || !account.mayChange) return;
  const [user, ...words] = login.split(":");
  try {
    const [name, password] = [decodeURIComponent(user), decodeURIComponent(words.join(":"))];
    field.value = `${field.value.trim().split("://")[0]}://${rest}`;
    Object.assign(byId("add-user"), { value: name });
    Object.assign(byId("add-password"), { value: password });
  } catch {
    // A % that encodes nothing: it stays as it was typed.
  }
}

/** @param {boolean} isTyped whether the address is complete: half of one is no mistake */
function showAdd(isTyped) {
  const [url, name] = [byId("add-url").value, byId("add-name").value.trim()];
  const { problem, add, init, hint } = commandsFor(url, name, byId("add-user").value !== "");
  if (isTyped || !problem) {
    setText(byId("add-problem"), problem);
    markInvalid(problem ? ["url"] : []);
  }
  setText(byId("add-command"), add);
  setText(byId("init-command"), init);
  setText(byId("add-hint"), hint);
  setText(byId("add-copied"), "");
}

/** What was found is of another address. */
function forgetFound() {
  adding.request += 1;
  setText(byId("add-found"), "");
}

/** @param {string[]} keys of a stream, which are wrong */
function markInvalid(keys) {
  for (const key of ["url", "name"]) setAttribute(byId(`add-${key}`), "aria-invalid", String(keys.includes(key)));
}

/** Shows what those who look at the page may do. */
function showWhoMayAdd() {
  for (const part of document.querySelectorAll("[data-of-operators]")) part.hidden = !account.mayChange;
  setText(byId("add-why-not"), account.mayChange || !account.whyNot ? "" : `To add it here: ${account.whyNot[0].toLowerCase()}${account.whyNot.slice(1)}`);
  for (const id of ["add-try", "add-add"]) setAttribute(byId(id), "aria-disabled", String(adding.isSending));
}

/** What a try has shown, in a sentence. @param {any} found */
function probeInWords(found) {
  if (found.reason) return `It cannot be read. ${REASONS[found.reason] ?? ""} The daemon says: ${found.detail}`;
  const fps = found.fps ? `, ${found.fps} fps` : "";
  return `It can be read: ${found.codec}, ${found.width} × ${found.height}${fps}. Its first picture came after ${found.first_frame_seconds.toFixed(1)} s.`;
}

/**
 * Asks the daemon, once at a time.
 * @param {string} words what is shown meanwhile
 * @param {() => Promise<any>} send
 * @returns {Promise<any>} the answer; null where it was refused, or where something else was typed meanwhile
 */
async function askToAdd(words, send) {
  const url = byId("add-url");
  if (adding.isSending || !account.mayChange) return null;
  if (!url.value.trim()) {
    setText(byId("add-problem"), "Type the address of a camera.");
    markInvalid(["url"]);
    url.focus();
    return null;
  }
  adding.isSending = true;
  const number = ++adding.request;
  const found = byId("add-found");
  found.removeAttribute("data-can");
  setText(byId("add-problem"), "");
  markInvalid([]);
  setText(found, words);
  showWhoMayAdd();
  const { ok, answer, problem, problems } = await send();
  adding.isSending = false;
  showWhoMayAdd();
  if (number !== adding.request) return null;
  setText(found, "");
  if (ok) return answer;
  const keys = problems.map(({ path }) => String(path[0]));
  const named = { url: "The address", name: "The name" };
  const sentence = problems.map(({ path, text }) => (named[path[0]] ? `${named[path[0]]} ${text}` : text)).join("; ");
  setText(byId("add-problem"), sentence || problem);
  markInvalid(keys);
  return null;
}

async function tryStream() {
  moveLogin();
  const answer = await askToAdd("Trying it …", () => sendJson("/api/probe", { url: urlOfForm() }, PROBE_TIMEOUT_MILLISECONDS));
  if (!answer) return;
  setAttribute(byId("add-found"), "data-can", answer.reason ? "no" : "yes");
  setText(byId("add-found"), probeInWords(answer));
  if (answer.reason === "unauthorized") byId("add-user").focus();
}

async function addStream() {
  moveLogin();
  const url = urlOfForm();
  const typed = byId("add-name").value.trim();
  const name = typed || unusedStreamName(streamName(url, ""));
  const persist = byId("add-persist").checked;
  const answer = await askToAdd("Adding it …", () => applyChange({ add: { name, url }, persist }));
  if (!answer) return;
  for (const id of ["add-url", "add-name", "add-user", "add-password"]) byId(id).value = "";
  Object.assign(adding, { name, at: performance.now() });
  showAdd(true);
  announce(`${name} is added${persist ? ", and kept over restarts" : ", until the daemon is restarted"}.`);
  location.hash = addressOf("stream", name);
}

/** A name that no stream has. @param {string} name */
function unusedStreamName(name) {
  let free = name;
  for (let number = 2; rows.has(free); number++) free = `${name}-${number}`;
  return free;
}

/** Puts the form where it is needed. @param {string} id of its place */
function placeAdd(id) {
  const place = byId(id);
  if (byId("add").parentNode === place) return;
  place.append(byId("add"));
  readAccount().then(showWhoMayAdd);
}

function initAdd() {
  byId("add-form").addEventListener("submit", (event) => (event.preventDefault(), addStream()));
  byId("add-form").addEventListener("input", ({ target }) => {
    if (target.id === "add-persist") return;
    forgetFound();
    showAdd(false);
  });
  byId("add-url").addEventListener("change", () => {
    moveLogin();
    showAdd(true);
  });
  byId("add-try").addEventListener("click", tryStream);
  for (const id of ["add-command", "init-command"]) {
    byId(`${id}-copy`).addEventListener("click", () => copyText(byId(id).textContent, byId("add-copied")));
  }
  readAccount().then(showWhoMayAdd);
  showAdd(true);
}

addView("add", {
  open() {
    placeAdd("add-view");
    readAccount().then(showWhoMayAdd);
  },
  alone: true,
  title: () => "Add a stream – streamdet",
  focus: () => byId("add-url"),
});
