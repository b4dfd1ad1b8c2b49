/* The wall: one tile per stream. Only tiles that can be seen are drawn, and only their pictures are asked for. */

const SPARK_SAMPLES = 60;
const MAX_PICTURES = 64;

/** All streams as the server last sent them, by name. @type {Map<string, any>} */
const rows = new Map();
/** Samples of each stream: [fps in, fps out, latency in ms], the newest last. @type {Map<string, any[]>} */
const histories = new Map();
/** @type {Map<string, Tile>} */
const tiles = new Map();

/** What is shown as live is not older than this; what is older is visibly so. */
const LIVE_SECONDS = 2;
/** So long the server may be silent; it answers at least once a second. */
const SERVER_SILENCE_SECONDS = 3;
/** When the server answered last, and whether it hears the daemon. */
const heard = { at: performance.now(), daemon: false };

/** @param {number} at by the clock of this page, in milliseconds */
const secondsSince = (at) => (performance.now() - at) / 1000;

/** Whether what we know of the daemon is of now. */
const isHeard = () => heard.daemon && secondsSince(heard.at) < SERVER_SILENCE_SECONDS;

/** Whether the state of a stream is of now: the daemon is heard, and a stream that is up sends at its usual pace. */
function isLive(row) {
  if (!isHeard()) return false;
  if (row.state !== "up" || row.takenAt === null) return true;
  const pace = row.fps_out > 0 ? 3 / row.fps_out : 0;
  return secondsSince(row.takenAt) <= Math.max(LIVE_SECONDS, pace);
}

const isUp = (row) => row.state === "up" && isLive(row);
const isProblem = (row) => !isUp(row) && !(isResting(row) && isHeard());

/** Shows how old a picture is, when it is not live. @param {{picture: Element, age: Element, takenAt: number | null}} shown */
function showAge({ picture, age, takenAt }) {
  const seconds = takenAt === null ? 0 : secondsSince(takenAt);
  const old = seconds > LIVE_SECONDS;
  picture.classList.toggle("old", old);
  age.hidden = !old;
  if (old) setText(age, lastSeen(seconds));
}

class Tile {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    this.visible = false;
    this.canvas = make("canvas", { width: 16, height: 9, role: "img", "aria-label": `Picture of ${name}` });
    this.veilTitle = make("strong");
    this.veilText = make("span");
    this.veil = make("div", { class: "veil" }, this.veilTitle, this.veilText);
    this.age = make("span", { class: "age", hidden: true });
    /** When the picture that is shown was taken, by the clock of this page. @type {number | null} */
    this.takenAt = null;
    this.picture = make("div", { class: "picture" }, this.canvas, this.veil, this.age);
    this.title = make("span", { class: "tile-name", text: name, title: name });
    this.seen = make("span", { class: "tile-seen" });
    this.state = make("span", { class: "visually-hidden" });
    this.fps = make("p");
    this.latency = make("p");
    this.fpsSpark = makeSpark();
    this.latencySpark = makeSpark();
    this.link = make(
      "a",
      { href: detailAddress(name) },
      this.picture,
      make("div", { class: "tile-head" }, make("span", { class: "dot" }), this.title, this.state, this.seen),
      make(
        "div",
        { class: "tile-numbers" },
        make("div", {}, this.fps, this.fpsSpark),
        make("div", {}, this.latency, this.latencySpark),
      ),
    );
    this.element = make("li", { class: "tile" }, this.link);
    this.element.tile = this;
  }

  /** Shows the newest row and history. */
  update() {
    const row = rows.get(this.name);
    setAttribute(this.element, "data-state", isResting(row) ? "resting" : row.state);
    this.showFreshness();
    if (!this.visible) return;
    setText(this.seen, row.state === "up" ? counted(row.labels) || "nothing found" : "");
    showNumbers(this.fps, "fps", `${perSecond(row.fps_in)} in, ${perSecond(row.fps_out)} out`);
    showNumbers(this.latency, "latency", milliseconds(row.latency_ms));
    const history = (histories.get(this.name) ?? []).slice(-SPARK_SAMPLES);
    drawLines(this.fpsSpark, fpsSeries(history), SPARK_SAMPLES);
    drawLines(this.latencySpark, latencySeries(history), SPARK_SAMPLES);
  }

  /** Shows whether what is shown is of now; called now and then, whatever comes or does not come. */
  showFreshness() {
    const row = rows.get(this.name);
    const live = isLive(row);
    setAttribute(this.element, "data-live", String(live));
    if (!this.visible) return;
    setText(this.state, live ? `, ${whatNow(row)}, ` : ", not heard of, ");
    showVeil(this.picture, this.veil, this.veilTitle, this.veilText, row);
    showAge(this);
  }

  /** @param {ImageBitmap} bitmap @param {any} shot */
  draw(bitmap, shot) {
    this.takenAt = performance.now() - shot.age_seconds * 1000;
    showAge(this);
    drawShot(this.canvas, bitmap, shot, { boxes: true, labels: true, crowd: this.canvas.clientWidth < 520, geometry: null });
    setAttribute(this.canvas, "aria-label", `Picture of ${this.name}: ${counted(countLabels(shot.detections)) || "nothing found"}`);
  }

  /** Frees the memory of a picture that no one sees. */
  hide() {
    this.visible = false;
    this.takenAt = null;
    Object.assign(this.canvas, { width: 16, height: 9 });
    havePictures.delete(this.name);
  }
}

const fpsSeries = (history) => [
  { kind: "in", values: history.map(([fpsIn]) => fpsIn) },
  { kind: "out", values: history.map(([, fpsOut]) => fpsOut) },
];
const latencySeries = (history) => [{ kind: "latency", values: history.map(([, , latency]) => latency) }];

function showNumbers(paragraph, what, value) {
  if (!paragraph.firstChild) paragraph.append(make("b"), ` ${what}`);
  setText(paragraph.firstChild, value);
}

/** Covers the picture of a stream that is not up with words about why. */
function showVeil(picture, veil, title, text, row) {
  const up = row.state === "up";
  veil.hidden = up && havePictures.has(row.name);
  picture.classList.toggle("stale", !up);
  setAttribute(picture, "data-state", isResting(row) ? "resting" : row.state);
  if (veil.hidden) return;
  if (up) setText(title, "Waiting for a picture");
  else setText(title, isLive(row) ? notUpFor(row) : `${whatNow(row)} when last heard of`);
  setText(text, up ? "" : whyNot(row));
}

/** Tiles that come into sight are drawn, those that go out of it are not. */
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const { tile } = /** @type {any} */ (target);
      if (isIntersecting) Object.assign(tile, { visible: true }).update();
      else tile.hide();
    }
    askAgain();
  },
  { rootMargin: "80px" },
);

/**
 * @param {any[]} streams the rows of an overview, by name
 * @param {boolean} fresh whether histories begin again
 * @param {number} ageSeconds of the overview
 */
function updateRows(streams, fresh, ageSeconds) {
  rows.clear();
  for (const row of streams) {
    row.takenAt = row.age_seconds === null ? null : performance.now() - (row.age_seconds + ageSeconds) * 1000;
    const before = fresh ? [] : histories.get(row.name) ?? [];
    histories.set(row.name, [...before, ...row.samples].slice(-90));
    rows.set(row.name, row);
  }
  for (const name of histories.keys()) if (!rows.has(name)) histories.delete(name);
}

/** Adds, removes and updates tiles. @param {{show: string, find: string}} choice */
function updateWall(choice) {
  const wall = byId("wall");
  for (const [name, tile] of tiles) {
    if (!rows.has(name)) {
      sight.unobserve(tile.element);
      tile.element.remove();
      tiles.delete(name);
    }
  }
  let shown = 0;
  let before = null;
  for (const [name, row] of rows) {
    let tile = tiles.get(name);
    if (!tile) {
      tile = new Tile(name);
      tiles.set(name, tile);
      if (before) before.after(tile.element);
      else wall.prepend(tile.element);
      sight.observe(tile.element);
    }
    before = tile.element;
    tile.element.hidden = !isChosen(row, choice);
    shown += Number(!tile.element.hidden);
    tile.update();
  }
  setRatio(wall);
  return shown;
}

function isChosen(row, { show, find }) {
  const right = show === "all" || (show === "up" ? isUp(row) : isProblem(row));
  return right && row.name.toLowerCase().includes(find);
}

/** Gives all pictures the shape that most of them have, so that the wall is even. */
function setRatio(wall) {
  const shapes = countLabels([...rows.values()].filter((row) => row.size).map(({ size: [w, h] }) => ({ label: `${w} / ${h}` })));
  const [most] = Object.entries(shapes).sort((a, b) => b[1] - a[1])[0] ?? ["16 / 9"];
  wall.style.setProperty("--ratio", most);
}

/** Names of the streams whose pictures can be seen on the wall. */
const visibleStreams = () => [...tiles.values()].filter((tile) => tile.visible).map((tile) => tile.name).slice(0, MAX_PICTURES);

/** Arrow keys, Home and End go from tile to tile. @param {KeyboardEvent} event */
function walkWall(event) {
  const here = /** @type {Element} */ (event.target).closest(".tile");
  if (!here || event.altKey || event.ctrlKey || event.metaKey) return;
  const shown = [...byId("wall").children].filter((tile) => !tile.hidden);
  const at = shown.indexOf(here);
  const columns = shown.filter((tile) => tile.offsetTop === shown[0].offsetTop).length;
  const targets = {
    ArrowLeft: at - 1, ArrowRight: at + 1, ArrowUp: at - columns, ArrowDown: at + columns, Home: 0, End: shown.length - 1,
  };
  const target = shown[targets[event.key]];
  if (target) {
    event.preventDefault();
    target.querySelector("a").focus();
  }
}
