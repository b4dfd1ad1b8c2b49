/* The first run: commands for the address of a camera. Nothing of it is sent anywhere, stored or shown with its login. */

const ADDRESS = /^(rtsps?|https?):\/\/(?:(?<login>[^/@\s]*)@)?(?<rest>[^/@\s]+\S*)$/i;
const DEVICE = /^(?:\/dev\/video[0-9]+|(?:file:\/\/)?\/\S.*)$/;
const EXAMPLE = "rtsp://192.0.2.7/stream1";

/**
 * What to run for an address.
 * @param {string} typed
 * @param {string} name
 * @returns {{problem: string, add: string, init: string, hint: string}}
 */
function commandsFor(typed, name) {
  const text = typed.trim();
  const { login, rest } = ADDRESS.exec(text)?.groups ?? {};
  const isKnown = rest !== undefined || DEVICE.test(text);
  const problem = text && !isKnown ? `An address looks like ${EXAMPLE}, or is /dev/video0 or the path of a film.` : "";
  const stream = nameFor(name || (rest ?? "").split(/[/:?]/)[0]);
  const bare = isKnown && login !== undefined ? `${text.split("://")[0]}://${rest}` : isKnown ? text : EXAMPLE;
  if (login === undefined) {
    return { problem, add: `streamdet streams add ${stream} ${quoted(bare)} --persist`, init: `streamdet init ${quoted(bare)}`, hint: "" };
  }
  return {
    problem,
    add: `streamdet streams add ${stream} --url-from-stdin --persist`,
    init: `streamdet init ${quoted(bare)}`,
    hint: "The login is left out of the commands, where others of that machine could see it: type the whole address when the first one waits for it; the second one asks for user and password.",
  };
}

/** A name as a stream may have it. @param {string} text */
const nameFor = (text) => text.toLowerCase().replace(/[^a-z0-9._-]+/g, "-").replace(/^[^a-z0-9]+|-+$/g, "").slice(0, 64) || "front-door";

/** A word for a shell. @param {string} text */
const quoted = (text) => (/^[\w./:@%+=,-]+$/.test(text) ? text : `'${text.replaceAll("'", "'\\''")}'`);

function showCommands() {
  const { problem, add, init, hint } = commandsFor(byId("first-url").value, byId("first-name").value.trim());
  setText(byId("first-problem"), problem);
  setAttribute(byId("first-url"), "aria-invalid", String(problem !== ""));
  setText(byId("first-add"), add);
  setText(byId("first-init"), init);
  setText(byId("first-hint"), hint);
  setText(byId("first-copied"), "");
}

function initFirst() {
  byId("first-form").addEventListener("submit", (event) => event.preventDefault());
  byId("first-form").addEventListener("input", showCommands);
  for (const id of ["first-add", "first-init"]) {
    byId(`${id}-copy`).addEventListener("click", () => copyText(byId(id).textContent, byId("first-copied")));
  }
  showCommands();
}
