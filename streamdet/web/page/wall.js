/* The wall: one tile per stream. Only tiles that can be seen are drawn, and only their pictures are asked for. */

const SPARK_SAMPLES = 60;
const MAX_PICTURES = 64;

/** Which streams are shown. */
const choice = { show: "all", find: "" };
/** @type {Map<string, Tile>} */
const tiles = new Map();

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
      { href: addressOf("stream", name) },
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

/** Adds, removes and updates tiles. @returns {number} how many are shown */
function updateTiles() {
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
    tile.element.hidden = !isChosen(row);
    shown += Number(!tile.element.hidden);
    tile.update();
  }
  setRatio(wall);
  return shown;
}

function isChosen(row) {
  const { show, find } = choice;
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

function initToolbar() {
  byId("find").addEventListener("input", () => choose({ find: byId("find").value.trim().toLowerCase() }));
  for (const button of document.querySelectorAll("[data-show]")) {
    button.addEventListener("click", () => choose({ show: button.dataset.show }));
  }
  byId("wall").addEventListener("keydown", walkWall);
  const size = byId("size");
  size.value = kept.get("size", size.value);
  const resize = () => byId("wall").style.setProperty("--tile", `${size.value}px`);
  size.addEventListener("input", () => (kept.set("size", size.value), resize()));
  resize();
}

function choose(change) {
  Object.assign(choice, change);
  for (const button of document.querySelectorAll("[data-show]")) {
    setAttribute(button, "aria-pressed", String(button.dataset.show === choice.show));
  }
  byId("wall-empty").hidden = updateTiles() > 0;
  setText(byId("wall-empty"), "No stream matches.");
}

function showEmpty(overview, shown) {
  const empty = byId("wall-empty");
  empty.hidden = shown > 0;
  const none = overview.disconnected_seconds === null ? "The daemon has not reported any stream yet." : `Waiting for a daemon at ${overview.endpoint}.`;
  setText(empty, rows.size ? "No stream matches." : none);
}

/** The stream whose page was open before; the focus comes back to its tile. */
let leftStream = "";

addView("wall", {
  open() {
    listOnly("");
    updateTiles();
  },
  title: () => "streamdet",
  pictures: visibleStreams,
  draw(bitmap, shot) {
    const tile = tiles.get(shot.stream);
    if (tile?.visible) {
      tile.draw(bitmap, shot);
      tile.veil.hidden = rows.get(shot.stream)?.state === "up";
    }
    bitmap.close();
  },
  update({ overview }) {
    showEmpty(overview, updateTiles());
  },
  refresh() {
    for (const tile of tiles.values()) {
      tile.showFreshness();
      tile.element.hidden = !isChosen(rows.get(tile.name));
    }
  },
  focus: () => tiles.get(leftStream)?.link,
});
