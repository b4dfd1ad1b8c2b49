/* Making and changing elements. Text of others (names, labels, details) only ever becomes text, never markup. */

const SVG = "http://www.w3.org/2000/svg";

/** The element with this id. @param {string} id @returns {any} */
const byId = (id) => document.getElementById(id);

/**
 * Makes an element.
 * @param {string} tag
 * @param {Record<string, string | number | boolean>} attributes `text` is its text; false leaves an attribute out.
 * @param {...Node} children
 * @returns {any}
 */
function make(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. @param {string} tag @param {Record<string, any>} attributes @param {...Node} children @returns {any} */
function makeSvg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "text") element.textContent = String(value);
    else if (value !== false) element.setAttribute(name, String(value === true ? "" : value));
  }
  element.append(...children);
  return element;
}

/** Changes a text only when it differs: an unchanged page costs no layout. @param {Element} element @param {string} text */
function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** @param {Element} element @param {string} name @param {string} value */
function setAttribute(element, name, value) {
  if (element.getAttribute(name) !== value) element.setAttribute(name, value);
}

/**
 * Fills a list of terms and values (`dl`). What stays the same stays in place, and with it what someone has selected.
 * @param {Element} list @param {[string, string][]} facts
 */
function fillFacts(list, facts) {
  const isSame = facts.length === list.children.length && facts.every(([term], at) => list.children[at].firstChild?.textContent === term);
  if (isSame) facts.forEach(([, value], at) => setText(/** @type {Element} */ (list.children[at].lastChild), value));
  else list.replaceChildren(...facts.map(([term, value]) => make("div", {}, make("dt", { text: term }), make("dd", { text: value }))));
}

/** @param {number} milliseconds */
const sleep = (milliseconds) => new Promise((done) => setTimeout(done, milliseconds));

/** A choice that this browser keeps; one that forbids it just forgets. */
const kept = {
  /** @param {string} key @param {string} otherwise @returns {string} */
  get(key, otherwise) {
    try {
      return localStorage.getItem(`streamdet.${key}`) ?? otherwise;
    } catch {
      return otherwise;
    }
  },
  /** @param {string} key @param {string} value */
  set(key, value) {
    try {
      localStorage.setItem(`streamdet.${key}`, value);
    } catch {
      // Private windows of some browsers keep nothing.
    }
  },
};

const MAX_ANNOUNCEMENTS = 8;

/** For screen readers. Each text is an element of its own: one that replaced another would keep it from being read. */
function announce(text) {
  const announcer = byId("announcer");
  announcer.append(make("p", { text }));
  while (announcer.children.length > MAX_ANNOUNCEMENTS) announcer.firstChild.remove();
}
