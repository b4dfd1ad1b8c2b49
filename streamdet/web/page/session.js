/* A login that has ended, as when someone logs out in another tab: asked about once, and nothing is asked for until there
 * is a new one. */

const session = {
  isOver: false,
  /** Where the page's tabs hear of a new login from each other. */
  tabs: new BroadcastChannel("streamdet"),
  /** Those who wait for a login. @type {(() => void)[]} */
  waiting: [],
};

/** Waits until there is a login, as far as this page knows. */
const untilLoggedIn = () => (session.isOver ? new Promise((done) => session.waiting.push(() => done(undefined))) : Promise.resolve());

/** Whether leaving the page would lose something, as said by those who keep people from leaving it. */
const isUnsaved = () => !dispatchEvent(new Event("beforeunload", { cancelable: true }));

/** An answer says that there is no login: where nothing is lost the form takes the place of the page, which then opens here again. */
function noteLoggedOut() {
  if (session.isOver) return;
  session.isOver = true;
  if (!isUnsaved()) return location.assign(`/login${location.hash}`);
  if (byId("logged-out").hidden) announce(byId("logged-out").textContent);
  showNotice();
}

/** There may be a login again: everything goes on, and finds out. */
function tryAgain() {
  if (!session.isOver) return;
  session.isOver = false;
  heard.at = performance.now(); // nothing was asked for meanwhile
  const { waiting } = session;
  session.waiting = [];
  for (const go of waiting) go();
}

/** An answer came that needs a login. */
function noteLoggedIn() {
  if (byId("logged-out").hidden) return;
  byId("logged-out").hidden = true;
  readAccount();
}

function initSession() {
  session.tabs.addEventListener("message", tryAgain);
  session.tabs.postMessage("opened"); // a tab that shows the page has a login
  addEventListener("focus", tryAgain);
  addEventListener("visibilitychange", () => document.hidden || tryAgain());
}
