/* Removing a stream, for operators: a dialog says what that means, and asks. */

/** The stream that the dialog asks about, and whether the daemon is asked now. */
const removing = { stream: "", isSending: false };

/** What becomes of a stream that is removed. @param {string} stream @param {string | undefined} origin */
function whatRemovingMeans(stream, origin) {
  if (origin === "file") return `It stands in the daemon's configuration file, which stays as it is: streamdet streams reset ${stream} brings it back.`;
  return "The daemon forgets its address, its zones and its other settings. To have it again, it must be added again.";
}

async function askToRemove() {
  const stream = openStream;
  const settings = await getSettings(stream);
  const dialog = byId("remove-dialog");
  if (openStream !== stream || dialog.open) return;
  removing.stream = stream;
  setText(byId("remove-title"), `Remove ${stream}?`);
  setText(byId("remove-what"), whatRemovingMeans(stream, settings?.origin));
  setText(byId("remove-problem"), "");
  byId("remove-persist").checked = settings?.origin === "run_time" && settings.persisted === true;
  dialog.showModal();
  byId("remove-cancel").focus();
}

async function removeStream() {
  const { stream } = removing;
  if (removing.isSending) return;
  removing.isSending = true;
  setAttribute(byId("remove-remove"), "aria-disabled", "true");
  const persist = byId("remove-persist").checked;
  const { ok, problem } = await applyChange({ remove: stream, persist });
  removing.isSending = false;
  setAttribute(byId("remove-remove"), "aria-disabled", "false");
  if (!ok) {
    setText(byId("remove-problem"), problem);
    return;
  }
  byId("remove-dialog").close();
  announce(`${stream} is removed${persist ? ", also over restarts" : ", until the daemon is restarted"}.`);
  if (openStream === stream) location.hash = "#/";
}

function initRemove() {
  byId("remove").addEventListener("click", askToRemove);
  byId("remove-cancel").addEventListener("click", () => byId("remove-dialog").close());
  byId("remove-form").addEventListener("submit", (event) => (event.preventDefault(), removeStream()));
}
