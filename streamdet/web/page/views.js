/* The views of the page, one of which is open. The address names it and says what it shows: "#/" is the wall,
 * "#/stream/gate" the stream "gate", "#/NAME/what?key=value" whatever the view NAME makes of it. */

/**
 * What a view does. Its file calls `addView`, its HTML is a section with the class "view" and the id NAME-view.
 * @typedef {object} View
 * @property {(what: string, query: URLSearchParams) => void} open shows what the address says; also when it is open already
 * @property {() => void} [close] before another view is opened
 * @property {() => string} title of the window
 * @property {() => string[]} [pictures] names of the streams whose pictures it shows now
 * @property {() => string} [detail] name of the stream whose newest frame, zones and stage times it shows
 * @property {(bitmap: ImageBitmap, shot: any) => void} [draw] takes one of these pictures, and closes it in time
 * @property {() => object | null} [news] what to add to each request about what happens
 * @property {(head: any) => void} [update] after each answer that has an overview
 * @property {() => void} [refresh] four times a second, whatever comes or does not come: ages go on
 * @property {() => Element | null | undefined} [focus] where the focus goes when someone opens it; else to its h1
 * @property {boolean} [drops] whether it shows what is dropped of each stream (`drops` in rows.js)
 * @property {boolean} [alone] whether the list of events does not stand beside it
 */

/** @type {Map<string, View>} */
const views = new Map();
const address = { name: "wall", what: "" };

/** @param {string} name @param {View} view */
const addView = (name, view) => views.set(name, view);

/** The view that is open. @returns {View} */
const openView = () => /** @type {View} */ (views.get(address.name));

/** The address of a view. @param {string} name @param {string} [what] @param {Record<string, string>} [query] */
function addressOf(name, what = "", query = {}) {
  const asked = new URLSearchParams(query).toString();
  const path = name === "wall" ? "#/" : `#/${name}${what && `/${encodeURIComponent(what)}`}`;
  return asked ? `${path}?${asked}` : path;
}

/** What an address says; one that is not ours is that of the wall. @param {string} hash */
function readAddress(hash) {
  const [path, query = ""] = hash.replace(/^#\/?/, "").split("?", 2);
  const [name, what = ""] = path.split("/", 2);
  try {
    if (views.has(name)) return { name, what: decodeURIComponent(what), query: new URLSearchParams(query) };
  } catch {
    // not an address that we made
  }
  return { name: "wall", what: "", query: new URLSearchParams(query) };
}

/** Opens what the address says. @param {boolean} byPerson whether someone followed a link */
function route(byPerson) {
  const { name, what, query } = readAddress(location.hash);
  const isOther = name !== address.name || what !== address.what;
  if (isOther) openView().close?.();
  Object.assign(address, { name, what });
  const view = openView();
  for (const section of document.querySelectorAll(".view")) section.hidden = section.id !== `${name}-view`;
  for (const link of document.querySelectorAll("[data-view]")) {
    if (link.dataset.view.split(" ").includes(name)) setAttribute(link, "aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  byId("layout").classList.toggle("alone", view.alone === true);
  view.open(what, query);
  if (byPerson && isOther) {
    scrollTo(0, 0);
    (view.focus?.() ?? byId(`${name}-view`).querySelector("h1"))?.focus({ preventScroll: !view.focus });
  }
  have.revision = 0;
  askAgain();
}
