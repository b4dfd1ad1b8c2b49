/* The wall: one tile per stream. Only tiles that can be seen are drawn, and only their pictures are asked for. */

const SPARK_SAMPLES = 60;
const MAX_PICTURES = 128;

/** Which streams are shown. */
const choice = { show: "all", find: "" };
/** @type {Map<string, Tile>} */
const tiles = new Map();

/**
 * What a tile has only while it is near the screen: its picture and figures. They are used again for other tiles, so
 * that scrolling makes no garbage, and hundreds of streams have no more canvases than a screen has tiles.
 */
class Body {
  constructor() {
    this.canvas = make("canvas", { width: 16, height: 9, role: "img" });
    this.veilTitle = make("strong");
    this.veilText = make("span");
    this.veil = make("div", { class: "veil" }, this.veilTitle, this.veilText);
    this.age = make("span", { class: "age", hidden: true });
    /** When the picture that is shown was taken, by the clock of this page. @type {number | null} */
    this.takenAt = null;
    this.picture = make("div", { class: "picture" }, this.canvas, this.veil, this.age);
    this.fps = makeFigure("fps");
    this.latency = makeFigure("latency");
    this.latency.text.classList.add("tile-latency");
    this.figures = make("div", { class: "tile-figures" }, this.fps.text, this.fps.spark, this.latency.text, this.latency.spark);
    this.why = make("p", { class: "tile-why" });
  }

  /** Forgets the picture, and frees its memory. */
  clear() {
    this.takenAt = null;
    Object.assign(this.canvas, { width: 16, height: 9 });
    delete this.canvas.dataset.frame;
  }
}

/** Bodies that no tile has now. @type {Body[]} */
const spareBodies = [];

class Tile {
  /** @param {string} name */
  constructor(name) {
    this.name = name;
    /** While it is near the screen. @type {Body | null} */
    this.body = null;
    this.state = make("span", { class: "visually-hidden" });
    this.seen = make("span", { class: "tile-seen" });
    this.head = make("div", { class: "tile-head" }, make("span", { class: "dot" }), make("span", { class: "tile-name", text: name, title: name }), this.state, this.seen);
    this.link = make("a", { href: addressOf("stream", name) }, this.head);
    this.element = make("li", { class: "tile" }, this.link);
    this.element.tile = this;
  }

  /** Shows the newest row and history. */
  update() {
    const row = rows.get(this.name);
    setAttribute(this.element, "data-state", isResting(row) ? "resting" : row.state);
    this.showFreshness();
    if (!this.body) return;
    const { fps, latency, why } = this.body;
    const up = row.state === "up";
    setText(this.seen, up ? counted(row.labels) || "nothing found" : "");
    setAttribute(this.seen, "title", this.seen.textContent);
    setText(fps.value, up ? `${perSecond(row.fps_in)} in, ${perSecond(row.fps_out)} out` : "–");
    setText(latency.value, milliseconds(row.latency_ms));
    const { text, isLoss } = whyFewer(drops.get(this.name) ?? {});
    const words = [whereOf(row), up && row.is_heard ? text : ""].filter(Boolean).join(" · ");
    setText(why, words);
    setAttribute(why, "title", words);
    why.classList.toggle("loss", up && row.is_heard && isLoss);
    const history = (histories.get(this.name) ?? []).slice(-SPARK_SAMPLES);
    drawLines(fps.spark, fpsSeries(history), SPARK_SAMPLES);
    drawLines(latency.spark, latencySeries(history), SPARK_SAMPLES);
  }

  /** Shows whether what is shown is of now; called now and then, whatever comes or does not come. */
  showFreshness() {
    const row = rows.get(this.name);
    const live = isLive(row);
    setAttribute(this.element, "data-live", String(live));
    setText(this.state, live ? `, ${whatNow(row)}, ` : ", not heard of, ");
    if (!this.body) return;
    const { picture, veil, veilTitle, veilText } = this.body;
    showVeil(picture, veil, veilTitle, veilText, row);
    showAge(this.body);
  }

  /** @param {VideoFrame | ImageBitmap} bitmap @param {any} shot */
  draw(bitmap, shot) {
    if (!this.body) return;
    const { canvas, veil } = this.body;
    this.body.takenAt = shot.takenAt;
    veil.hidden = rows.get(this.name)?.state === "up";
    showAge(this.body);
    drawShot(canvas, bitmap, shot, { boxes: true, labels: true, geometry: null });
    setAttribute(canvas, "aria-label", `Picture of ${this.name}: ${counted(countLabels(shot.detections)) || "nothing found"}`);
  }

  /** It comes near the screen. */
  show() {
    if (!this.body) {
      this.body = spareBodies.pop() ?? new Body();
      setAttribute(this.body.canvas, "aria-label", `Picture of ${this.name}`);
      this.head.before(this.body.picture);
      this.head.after(this.body.figures, this.body.why);
    }
    this.update();
  }

  /** It leaves the screen. */
  hide() {
    havePictures.delete(this.name);
    if (!this.body) return;
    const { picture, figures, why } = this.body;
    for (const part of [picture, figures, why]) part.remove();
    this.body.clear();
    spareBodies.push(this.body);
    this.body = null;
  }
}

/** A number with its unit, and its last minute beside it. @param {string} unit */
function makeFigure(unit) {
  const value = make("b", { text: "–" });
  return { value, text: make("p", {}, value, make("span", { text: ` ${unit}` })), spark: makeSpark() };
}

/** Tiles that come into sight are drawn, those that go out of it are not. */
const sight = new IntersectionObserver(
  (entries) => {
    for (const { target, isIntersecting } of entries) {
      const { tile } = /** @type {any} */ (target);
      if (!rows.has(tile.name)) continue; // it was removed after it was seen
      if (isIntersecting) tile.show();
      else tile.hide();
    }
    askAgain();
  },
  { rootMargin: "80px" },
);

/** Where one column is all there is room for: what is live comes first, and what is not is small. */
const narrow = matchMedia("(max-width: 640px)");

/** Adds, removes and updates tiles. @returns {number} how many are shown */
function updateTiles() {
  const wall = byId("wall");
  for (const [name, tile] of tiles) {
    if (!rows.has(name)) {
      sight.unobserve(tile.element);
      tile.hide();
      tile.element.remove();
      tiles.delete(name);
    }
  }
  let shown = 0;
  let before = null;
  for (const row of inOrder([...rows.values()])) {
    let tile = tiles.get(row.name);
    const isNew = !tile;
    if (isNew) tiles.set(row.name, (tile = new Tile(row.name)));
    placeAfter(wall, before, tile.element);
    if (isNew) sight.observe(tile.element);
    before = tile.element;
    tile.element.hidden = !isChosen(row);
    shown += Number(!tile.element.hidden);
    tile.update();
  }
  fitTiles(wall, shown);
  return shown;
}

const inOrder = (all) => (narrow.matches ? all.sort((a, b) => Number(b.state === "up") - Number(a.state === "up")) : all);

/** Puts an element after another, where it does not stand there already; it keeps the focus. */
function placeAfter(wall, before, element) {
  const next = before ? before.nextSibling : wall.firstChild;
  if (next === element) return;
  const focused = element.contains(document.activeElement) ? document.activeElement : null;
  wall.insertBefore(element, next);
  focused?.focus({ preventScroll: true });
}

function isChosen(row) {
  const { show, find } = choice;
  const right = show === "all" || (show === "up" ? isUp(row) : isProblem(row));
  return right && (row.name.toLowerCase().includes(find) || row.node?.toLowerCase() === find);
}

/** Widths of tiles that can be chosen, in pixels. */
const SIZES = { small: 170, medium: 300, large: 480 };
/** What stands below a picture, and between tiles, in pixels. */
const FOOT = 86;
const GAP = 12;

/** What the tiles were fitted to last. */
let fittedTo = "";

/** Gives all pictures the shape that most of them have, and tiles the chosen width, or one with which all can be seen at once. */
function fitTiles(wall, count) {
  const shapes = countLabels([...rows.values()].filter((row) => row.size).map(({ size: [w, h] }) => ({ label: `${w} / ${h}` })));
  const [most] = Object.entries(shapes).sort((a, b) => b[1] - a[1])[0] ?? ["16 / 9"];
  const size = byId("size").value;
  const to = [most, size, count, innerWidth, innerHeight, byId("notice").hidden, byId("wall-view").hidden].join();
  if (to === fittedTo) return; // measuring costs a layout
  fittedTo = to;
  wall.style.setProperty("--ratio", most);
  const [w, h] = most.split(" / ").map(Number);
  const fitting = size === "auto" && !narrow.matches ? widestThatFits(wall, count, w / h) : 0;
  wall.classList.toggle("fitted", fitting > 0);
  const tile = fitting || (SIZES[size] ?? SIZES.medium);
  wall.style.setProperty("--tile", `${tile}px`);
  // What tiles that were never on the screen are taken to be as high as.
  const across = fitting || widthOfColumns(wall.clientWidth, tile);
  wall.style.setProperty("--tile-height", `${Math.round((across * h) / w + FOOT)}px`);
}

/** How wide columns become of which as many as there is room for fill the width, in pixels. */
function widthOfColumns(width, least) {
  const columns = Math.max(1, Math.floor((width + GAP) / (least + GAP)));
  return (width - GAP * (columns - 1)) / columns;
}

/** The width with which so many tiles are as large as they can be without scrolling; 0 where they would be too small. */
function widestThatFits(wall, count, ratio) {
  const width = wall.clientWidth;
  const height = innerHeight - (wall.getBoundingClientRect().top + scrollY) - GAP;
  let best = 0;
  for (let columns = 1; columns <= count; columns++) {
    const lines = Math.ceil(count / columns);
    const across = (width - GAP * (columns - 1)) / columns;
    const down = ((height - GAP * (lines - 1)) / lines - FOOT) * ratio;
    best = Math.max(best, Math.min(across, down));
  }
  return best >= 0.85 * SIZES.medium ? Math.floor(best) : 0;
}

/** Names of the streams whose pictures can be seen on the wall. */
const visibleStreams = () => [...tiles.values()].filter((tile) => tile.body).map((tile) => tile.name).slice(0, MAX_PICTURES);

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
  byId("wall-all").addEventListener("click", () => {
    byId("find").value = "";
    choose({ show: "all", find: "" });
  });
  const size = byId("size");
  size.value = kept.get("size", "auto");
  if (!size.value) size.value = "auto";
  size.addEventListener("change", () => (kept.set("size", size.value), updateTiles()));
  addEventListener("resize", updateTiles);
}

function choose(change) {
  Object.assign(choice, change);
  for (const button of document.querySelectorAll("[data-show]")) {
    setAttribute(button, "aria-pressed", String(button.dataset.show === choice.show));
  }
  showEmpty(updateTiles());
}

/** Says why the wall is empty, and what to do. @param {number} shown */
function showEmpty(shown) {
  let why = "";
  if (!shown && rows.size) why = "filtered";
  else if (!shown && heard.daemon) why = !hasNoStreams() ? "loading" : heard.cluster ? "unfilled" : "first";
  else if (!shown) why = !heard.endpoint ? "loading" : heard.cluster ? "headless" : "waiting";
  for (const part of document.querySelectorAll("[data-empty]")) part.hidden = part.dataset.empty !== why;
  if (why === "first") placeAdd("wall-first");
  byId("wall-add").hidden = !account.mayChange || why === "first";
  for (const id of ["wall-endpoint", "wall-head"]) setText(byId(id), heard.endpoint);
}

/** The stream whose page was open before; the focus comes back to its tile. */
let leftStream = "";

addView("wall", {
  open() {
    listOnly("");
    showEmpty(updateTiles());
  },
  title: () => "streamdet",
  pictures: visibleStreams,
  draw(bitmap, shot) {
    tiles.get(shot.stream)?.draw(bitmap, shot);
    bitmap.close();
  },
  drops: true,
  update() {
    showEmpty(updateTiles());
  },
  refresh() {
    for (const tile of tiles.values()) {
      tile.showFreshness();
      tile.element.hidden = !isChosen(rows.get(tile.name));
    }
  },
  focus: () => tiles.get(leftStream)?.link,
});
