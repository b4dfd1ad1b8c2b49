/* Zones, lines and masks as they may stand in the configuration, and which boxes they hold. The same rules and the same
 * sentences as in config/stream.py and analytics/zones.py, in the same order of arithmetic; a test compares them. */

/**
 * A shape with the keys of the configuration; those that are left out have their defaults.
 * @typedef {object} Shape
 * @property {string} name
 * @property {[number, number][]} points corners or ends, as parts of the picture's width and height; `polygon` in the file
 * @property {string[]} [labels]
 * @property {number} [min_size]
 * @property {number} [max_size]
 * @property {"bottom" | "center" | "any"} [anchor]
 * @property {number} [min_score] not of masks
 * @property {number[]} [dwell_seconds] of zones
 * @property {number | null} [loiter_seconds] of zones
 */

const MAX_SHAPES = 16;
const MAX_POINTS = 64;
const MAX_DWELLS = 8;
const MAX_VISIT_SECONDS = 86400;
/** Of a wrong name, in characters. */
const MAX_SHOWN = 40;
const NAME_OF_SHAPE = /^[a-z0-9][a-z0-9._-]{0,63}$/;
/** What the three lists of a stream are called, and one shape of each. */
const NOUNS = { zones: "zone", lines: "line", masks: "mask" };
const KINDS_OF_SHAPES = /** @type {(keyof typeof NOUNS)[]} */ (Object.keys(NOUNS));

/** A number as the sentences write it: six digits at most. @param {number} value */
const short = (value) => String(Number(value.toPrecision(6)));

/** Letters that are no other letter with a mark. */
const SPELLED_OUT = { ß: "ss", æ: "ae", œ: "oe", ø: "o", ł: "l", đ: "d", ð: "d", þ: "th", ı: "i" };

/** The nearest valid name; empty if no character is left. @param {string} text */
function slug(text) {
  const letters = text.normalize("NFKD").replace(/\p{M}+/gu, "").toLowerCase().replace(/[ßæœøłđðþı]/g, (letter) => SPELLED_OUT[letter]);
  return trimmed(trimmed(letters.replace(/[^a-z0-9._-]+/g, "-")).slice(0, 64));
}
const trimmed = (text) => text.replace(/^[-._]+|[-._]+$/g, "");

/** Above 0 to the right of the line as seen from its start (y points down), below 0 to its left, 0 on it. */
const sideOf = ([x1, y1], [x2, y2], [x, y]) => (x2 - x1) * (y - y1) - (y2 - y1) * (x - x1);

const isWithin = ([x1, y1], [x2, y2], [x, y]) =>
  Math.min(x1, x2) <= x && x <= Math.max(x1, x2) && Math.min(y1, y2) <= y && y <= Math.max(y1, y2);

/** Whether two segments have a point in common, their ends included. */
function segmentsMeet(start, end, otherStart, otherEnd) {
  const [one, two] = [sideOf(start, end, otherStart), sideOf(start, end, otherEnd)];
  const [three, four] = [sideOf(otherStart, otherEnd, start), sideOf(otherStart, otherEnd, end)];
  if (one > 0 !== two > 0 && three > 0 !== four > 0 && one && two && three && four) return true;
  return (
    (one === 0 && isWithin(start, end, otherStart)) || (two === 0 && isWithin(start, end, otherEnd)) ||
    (three === 0 && isWithin(otherStart, otherEnd, start)) || (four === 0 && isWithin(otherStart, otherEnd, end))
  );
}

function runsBack(start, corner, end) {
  const forward = (corner[0] - start[0]) * (end[0] - corner[0]) + (corner[1] - start[1]) * (end[1] - corner[1]);
  return sideOf(start, corner, end) === 0 && forward < 0;
}

/** Two sides of a polygon, counted from 0, that meet elsewhere than in a shared corner; null if no sides do. */
function crossingSides(polygon) {
  const count = polygon.length;
  const sides = polygon.map((corner, at) => [corner, polygon[(at + 1) % count]]);
  for (let first = 0; first < count; first++) {
    for (let second = first + 1; second < count; second++) {
      if (second === first + 1 || (first === 0 && second === count - 1)) {
        const [near, far] = second === first + 1 ? [first, second] : [second, first];
        if (runsBack(sides[near][0], sides[near][1], sides[far][1])) return [first, second];
      } else if (segmentsMeet(sides[first][0], sides[first][1], sides[second][0], sides[second][1])) return [first, second];
    }
  }
  return null;
}

/** What is wrong with corners or ends, as `streamdet check` says it; empty if nothing is. @param {keyof typeof NOUNS} kind */
function problemOfPoints(kind, points) {
  if (!points.every(([x, y]) => x >= 0 && x <= 1 && y >= 0 && y <= 1)) return "must be a point: two numbers from 0 to 1, such as [0.5, 1.0]";
  const isSame = (one, other) => one[0] === other[0] && one[1] === other[1];
  if (kind === "lines") {
    if (points.length !== 2) return `has ${points.length} points; a line has 2`;
    return isSame(points[0], points[1]) ? "begins where it ends" : "";
  }
  if (points.length < 3 || points.length > MAX_POINTS) return `has ${points.length} points; a polygon has 3 to ${MAX_POINTS}`;
  if (points.some((point, at) => points.slice(0, at).some((other) => isSame(point, other)))) return "has a point twice; leave the second one out: the polygon is closed automatically";
  if (points.every((corner) => sideOf(points[0], points[1], corner) === 0)) return "has no area; its corners lie on one line";
  const crossing = crossingSides(points);
  return crossing ? `crosses itself: side ${crossing[0] + 1} meets side ${crossing[1] + 1}; give the corners in their order` : "";
}

/** @param {string} name */
function problemOfName(name) {
  if (NAME_OF_SHAPE.test(name)) return "";
  const near = slug(name);
  const [...characters] = name;
  const shown = characters.length > MAX_SHOWN ? `${characters.slice(0, MAX_SHOWN).join("")}...` : name;
  return `is "${shown}"; must be 1 to 64 small letters, digits, - _ . and begin with a letter or digit${near && `; for example "${near}"`}`;
}

function problemOfDwells(seconds) {
  if (seconds.some((each) => !(each > 0 && each <= MAX_VISIT_SECONDS))) return `must be numbers above 0 and at most ${MAX_VISIT_SECONDS}`;
  if (seconds.length > MAX_DWELLS) return `has ${seconds.length} durations; at most ${MAX_DWELLS} are allowed`;
  for (let at = 1; at < seconds.length; at++) {
    const [before, after] = [seconds[at - 1], seconds[at]];
    if (before === after) return `has ${short(before)} s twice; leave one out`;
    if (before > after) return `has ${short(before)} s before ${short(after)} s; give the shortest first`;
  }
  return "";
}

/**
 * Everything that is wrong with one shape, by the key of the configuration.
 * @param {keyof typeof NOUNS} kind @param {Shape} shape @param {Shape[]} others of the same list, it among them
 * @returns {Record<string, string>}
 */
function problemsOf(kind, shape, others) {
  const { name, points, min_size: least = 0, max_size: most = 1, min_score: score = 0, dwell_seconds: dwells = [], loiter_seconds: loiter = null } = shape;
  const isPart = (value) => value >= 0 && value <= 1;
  const twice = others.filter((other) => other.name === name).length > 1;
  const found = {
    name: problemOfName(name) || (twice ? `${kind} hold the name "${name}" twice; every one needs a name of its own` : ""),
    [kind === "lines" ? "points" : "polygon"]: problemOfPoints(kind, points),
    min_size: isPart(least) ? "" : "must be a number from 0 to 1",
    max_size: !isPart(most) ? "must be a number from 0 to 1" : isPart(least) && most <= least ? `is ${short(most)}; must be above min_size, ${short(least)}` : "",
    min_score: isPart(score) ? "" : "must be a number from 0 to 1",
    dwell_seconds: problemOfDwells(dwells),
    loiter_seconds: loiter === null || (loiter > 0 && loiter <= MAX_VISIT_SECONDS) ? "" : `must be a number above 0 and at most ${MAX_VISIT_SECONDS}`,
  };
  return Object.fromEntries(Object.entries(found).filter(([, problem]) => problem));
}

/** What is wrong with a list as a whole. @param {Shape[]} shapes */
const problemOfList = (shapes) => (shapes.length > MAX_SHAPES ? `are ${shapes.length}; at most ${MAX_SHAPES} are allowed` : "");

/** Whether a point lies within a polygon (even-odd rule); of two polygons that share a side exactly one takes a point on it. */
function contains(polygon, [x, y]) {
  let inside = false;
  let [x1, y1] = polygon[polygon.length - 1];
  for (const [x2, y2] of polygon) {
    if (y1 > y !== y2 > y && x < x1 + ((y - y1) / (y2 - y1)) * (x2 - x1)) inside = !inside;
    [x1, y1] = [x2, y2];
  }
  return inside;
}

/** Whether a segment has a point in a box. */
function passes(start, end, box) {
  let [first, last] = [0, 1];
  for (const axis of [0, 1]) {
    const [at, way, low, high] = [start[axis], end[axis] - start[axis], box[axis], box[axis + 2]];
    if (way === 0) {
      if (at < low || at > high) return false;
      continue;
    }
    const [one, other] = [(low - at) / way, (high - at) / way];
    first = Math.max(first, Math.min(one, other));
    last = Math.min(last, Math.max(one, other));
  }
  return first <= last;
}

/** Whether a box and a polygon have a point in common. */
function touches(polygon, box) {
  const [x1, y1, x2, y2] = box;
  if (contains(polygon, [(x1 + x2) / 2, (y1 + y2) / 2]) || contains(polygon, [x1, y1])) return true;
  return polygon.some((end, at) => passes(polygon[(at || polygon.length) - 1], end, box));
}

/** The point of a box that counts, in pixels. @param {number[]} box @param {string} anchor */
function anchorOf([x1, y1, x2, y2], anchor) {
  const height = Math.max(y2 - y1, 1);
  const [x, y] = [(x1 + x2) / 2, y2];
  return anchor === "bottom" ? [x, y] : [x, y - height / 2];
}

/** Whether a shape counts an object of this label, score and size at all. @param {keyof typeof NOUNS} kind */
function counts(kind, shape, found, frame) {
  const { labels = [], min_score: score = 0, min_size: least = 0, max_size: most = 1 } = shape;
  const part = Math.max(found.box[3] - found.box[1], 1) / frame.height;
  return (kind === "masks" || found.score >= score) && (!labels.length || labels.includes(found.label)) && least <= part && part <= most;
}

/** Whether a zone or a mask holds a detection, by this frame alone. @param {keyof typeof NOUNS} kind @param {Shape} shape */
function holds(kind, shape, found, frame) {
  if (!counts(kind, shape, found, frame)) return false;
  const polygon = shape.points.map(([x, y]) => [x * frame.width, y * frame.height]);
  if (shape.anchor !== "any") return isWithinBounds(polygon, anchorOf(found.box, shape.anchor ?? "bottom"));
  const [x1, , x2, y2] = found.box;
  const height = Math.max(y2 - found.box[1], 1);
  const middle = (x1 + x2) / 2;
  const half = (x2 - x1) / 2;
  return touches(polygon, [middle - half, y2 - height, middle + half, y2]);
}

function isWithinBounds(polygon, [x, y]) {
  const [xs, ys] = [polygon.map(([each]) => each), polygon.map(([, each]) => each)];
  return Math.min(...xs) <= x && x <= Math.max(...xs) && Math.min(...ys) <= y && y <= Math.max(...ys) && contains(polygon, [x, y]);
}

/**
 * The zones and masks that hold a detection; one that a mask holds is not published.
 * @param {{zones: Shape[], masks: Shape[]}} shapes those that are sound
 * @param {{label: string, score: number, box: number[]}} found
 * @param {{width: number, height: number}} frame
 * @returns {{zones: string[], masks: string[]}} their names
 */
function verdictOf(shapes, found, frame) {
  const holding = (kind) => shapes[kind].filter((shape) => holds(kind, shape, found, frame)).map(({ name }) => name);
  return { zones: holding("zones"), masks: holding("masks") };
}
