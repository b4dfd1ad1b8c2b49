/* Draws zones, lines and masks over a picture of a stream, with a mouse, a finger or the keyboard alone. What is drawn is a
 * draft in this browser: it becomes text for the configuration and, where that is allowed, is applied to the daemon. */

const UNDO_STEPS = 100;
const DIGITS = 10000; // corners have four of them: less than half a pixel of the largest pictures
const SNAP_PIXELS = 9;
const DRAG_PIXELS = 6;
const STEP = 0.01;
const LONG_STEP = 0.1;
const SHORT_STEP = 0.001;
/** A side that is shorter on the screen has no handle in its middle. */
const MIN_SIDE_PIXELS = 64;
const MAX_SHOWN_BOXES = 200;
const SMALL_PART = 0.002;
const DRAFT_KEY = "streamdet.zones.";

const DRAWS = "Drag a rectangle, or click corner after corner and finish on the first one.";
const TOOL_HINTS = {
  select: "Choose Zone, Line or Mask to draw. Drag corners to move them, the middle of a side for a new corner, a shape to move all of it.",
  zones: DRAWS,
  lines: "Drag from one end to the other. Objects that cross in the direction of the arrow go in.",
  masks: `${DRAWS} Detections in a mask are left out; unless it is restricted to labels or sizes, its area is black in every picture.`,
};
const SELECT_KEYS = "Keys: Tab goes through the corners, arrows move, with Shift further, Delete removes, + adds a corner.";
const DRAW_KEYS = "Keys: arrows move the cursor, with Shift further, Enter sets a corner, F or Enter on the first one finishes, Escape cancels.";

/**
 * @typedef {{zones: any[], lines: any[], masks: any[]}} Lists
 * @typedef {{kind: "zones" | "lines" | "masks", shape: any}} Entry
 */

const noShapes = () => ({ zones: [], lines: [], masks: [] });

const editor = {
  stream: "",
  /** As configured, as far as known. @type {Lists | null} */
  base: null,
  /** Of the daemon's settings, against lost updates; empty where only their outlines are known. */
  version: "",
  /** What the daemon has published of them last; another one means that someone changed them. */
  outline: "",
  /** @type {Lists} */
  draft: noShapes(),
  /** What Undo goes back to, as JSON. */
  committed: "",
  /** @type {string[]} */
  undone: [],
  /** @type {string[]} */
  done: [],
  /** @type {Entry | null} */
  selected: null,
  tool: "select",
  /** Corners that are set of a shape that is being drawn. @type {[number, number][]} */
  drawing: [],
  /** Corners of it that were taken back, the last one last. @type {[number, number][]} */
  takenBack: [],
  /** Corners of shapes that were begun with other tools, by the tool; each goes on when that is chosen again. @type {Record<string, [number, number][]>} */
  begun: {},
  /** Why what was just tried while drawing did nothing. */
  note: "",
  /** Where the keyboard's cursor is. @type {[number, number]} */
  cursor: [0.5, 0.5],
  hasCursor: false,
  /** Where the pointer is while it draws. @type {[number, number] | null} */
  pointer: null,
  /** What the pointer holds. @type {any} */
  drag: null,
  /** @type {{bitmap: ImageBitmap, takenAt: number} | null} */
  picture: null,
  frame: { width: 16, height: 9 },
  /** @type {any[]} */
  boxes: [],
  /** What the server has refused, by the path of the value. @type {{path: (string | number)[], text: string}[]} */
  refused: [],
  /** What someone else has configured while there are changes here. @type {{lists: Lists, version: string} | null} */
  theirs: null,
  /** The rules in force, as they were read last. @type {any[]} */
  rules: [],
  isApplying: false,
  /** Whether the server was asked how it is configured; where it does not say, the published outlines have to do. */
  isRead: false,
};

/* Drafts */

const listsOf = (lists) => Object.fromEntries(KINDS_OF_SHAPES.map((kind) => [kind, lists[kind].map((shape) => ({ ...shape }))]));

/** Lists as the settings have them, with `polygon` for the corners. @returns {Lists} */
function fromSettings(settings) {
  const read = ({ polygon, points, ...keys }) => ({ ...keys, points: polygon ?? points });
  return /** @type {Lists} */ (Object.fromEntries(KINDS_OF_SHAPES.map((kind) => [kind, (settings[kind] ?? []).map(read)])));
}

/** By its id a shape is known as the same when it has another name. */
const newId = () => Math.random().toString(36).slice(2);

/** Lists with the ids of shapes of the same names. @param {Lists} lists @param {Lists} known @returns {Lists} */
const withIds = (lists, known) =>
  /** @type {Lists} */ (Object.fromEntries(KINDS_OF_SHAPES.map((kind) => [kind, lists[kind].map((shape) => ({ ...shape, id: known[kind].find(({ name }) => name === shape.name)?.id ?? newId() }))])));

const toSettings = (lists) => Object.fromEntries(KINDS_OF_SHAPES.map((kind) => [kind, lists[kind].map((shape) => keysOf(kind, shape))]));
/** The same text for the same shapes. @param {Lists} lists */
const textOfLists = (lists) => JSON.stringify(toSettings(lists));
const isDirty = () => editor.base !== null && textOfLists(editor.draft) !== textOfLists(editor.base);

/** How a shape is configured, as text; empty for none. */
const textOfShape = (kind, shape) => (shape ? JSON.stringify(keysOf(kind, shape)) : "");

/**
 * The changes of two people to the same shapes. A shape that only one of them has changed is as that one has it, one that both have
 * changed is mine, and of two new ones with the same name mine gets another. Shapes are the same by their names.
 * @param {Lists} base @param {Lists} mine @param {Lists} theirs
 * @returns {{lists: Lists, news: string[], lost: string[]}} `news`: what they have done, in words; `lost`: what of it counts no more
 */
function mergeLists(base, mine, theirs) {
  const lists = /** @type {Lists} */ (noShapes());
  const [news, lost] = [/** @type {string[]} */ ([]), /** @type {string[]} */ ([])];
  for (const kind of KINDS_OF_SHAPES) {
    const names = new Set([...theirs[kind], ...mine[kind], ...base[kind]].map(({ name }) => name));
    /** @type {any[]} */
    const renamed = [];
    for (const name of names) {
      const [was, my, their] = [base, mine, theirs].map((each) => each[kind].find((shape) => shape.name === name));
      const [before, here, there] = [was, my, their].map((shape) => textOfShape(kind, shape));
      const isNews = there !== before && there !== here;
      if (isNews) news.push(`${!their ? "deleted" : was ? "changed" : "added"} the ${NOUNS[kind]} ${name}`);
      if (isNews && !was && my) {
        renamed.push(my);
        lists[kind].push({ ...their });
        continue;
      }
      if (isNews && here !== before) lost.push(`the ${NOUNS[kind]} ${name}`);
      const kept = here !== before ? my : their;
      if (kept) lists[kind].push({ ...kept });
    }
    const twice = mine[kind].filter(({ name }, at) => mine[kind].findIndex((shape) => shape.name === name) !== at);
    lists[kind].push(...twice.map((shape) => ({ ...shape })));
    for (const shape of renamed) lists[kind].push({ ...shape, name: freeName(kind, lists) });
  }
  return { lists, news, lost };
}

/** What the browser keeps of a draft, over a reload of the page. @param {string} stream @returns {any} */
function keptDraft(stream) {
  try {
    return JSON.parse(sessionStorage.getItem(DRAFT_KEY + stream) ?? "null");
  } catch {
    return null;
  }
}

function keepDraft() {
  writeDraft(editor.stream, editor);
}

/** @param {string} stream @param {any} drafted the editor, or what it has kept */
function writeDraft(stream, { base, version, outline, draft, tool = "select", drawing = [], begun = {} }) {
  const isBegun = Object.keys(allBegun(tool, drawing, begun)).length > 0;
  try {
    if (isBegun || (base && textOfLists(draft) !== textOfLists(base))) {
      sessionStorage.setItem(DRAFT_KEY + stream, JSON.stringify({ base, version, outline, draft, ...(isBegun ? { tool, drawing, begun } : {}) }));
    } else sessionStorage.removeItem(DRAFT_KEY + stream);
  } catch {
    // Private windows of some browsers keep nothing.
  }
}

/** Corners of all shapes that are begun, by their tools. @returns {Record<string, [number, number][]>} */
const allBegun = (tool = editor.tool, drawing = editor.drawing, begun = editor.begun) => ({ ...begun, ...(drawing.length ? { [tool]: drawing } : {}) });

/** Whether any stream has a draft that is not applied. */
function hasDrafts() {
  try {
    return Object.keys(sessionStorage).some((key) => key.startsWith(DRAFT_KEY));
  } catch {
    return isDirty() || Object.keys(allBegun()).length > 0;
  }
}

/** The names of zones or lines of a stream that are drawn here and were not configured then. @param {string} stream @param {"zones" | "lines"} kind @returns {string[]} */
function draftedNames(stream, kind) {
  const kept = keptDraft(stream);
  const names = (lists) => (lists?.[kind] ?? []).map(({ name }) => name);
  return names(kept?.draft).filter((name) => !names(kept.base).includes(name));
}

/**
 * Applies one zone or line that is drawn, and nothing else of the draft of its stream.
 * @param {string} stream @param {"zones" | "lines"} kind @param {string} name @param {boolean} persist
 * @returns {Promise<{ok: boolean, problem: string}>}
 */
async function applyDrafted(stream, kind, name, persist) {
  const known = await getSettings(stream);
  const isOpen = editor.stream === stream;
  const drafted = isOpen ? editor : keptDraft(stream);
  const shape = drafted?.draft[kind].find((each) => each.name === name);
  if (!known || !shape) return { ok: false, problem: "How the stream is configured is not known now; try again." };
  const configured = fromSettings(known.settings);
  const isBase = Boolean(drafted.base) && textOfLists(configured) === textOfLists(drafted.base);
  const shapes = [...configured[kind].filter((each) => each.name !== name), shape].map((each) => keysOf(kind, each));
  const { ok, answer, problem } = await applyChange({ stream, patch: { [kind]: shapes }, version: known.version, persist });
  if (ok && isBase) {
    drafted.base[kind].push({ ...shape });
    drafted.version = answer.version;
  }
  if (ok) writeDraft(stream, drafted);
  return { ok, problem };
}

/** Makes the present draft a step that can be undone. */
function commit() {
  const now = JSON.stringify(editor.draft);
  if (now !== editor.committed) {
    editor.done.push(editor.committed);
    if (editor.done.length > UNDO_STEPS) editor.done.shift();
    editor.undone = [];
    editor.committed = now;
    forgetRefusal();
    setText(byId("zones-applied"), "");
  }
  keepDraft();
  showZones();
}

/** What was refused may be right after a change. */
function forgetRefusal() {
  editor.refused = [];
  setText(byId("zones-apply-problem"), "");
}

/** Goes back, or forth again. @param {string[]} from @param {string[]} to @param {string} word */
function goTo(from, to, word) {
  const next = from.pop();
  if (next === undefined) return;
  to.push(editor.committed);
  editor.committed = next;
  const at = editor.selected && editor.draft[editor.selected.kind].indexOf(editor.selected.shape);
  editor.draft = JSON.parse(next);
  const again = editor.selected && editor.draft[editor.selected.kind][at ?? -1];
  editor.selected = again ? { kind: /** @type {Entry} */ (editor.selected).kind, shape: again } : null;
  forgetRefusal();
  setText(byId("zones-applied"), "");
  keepDraft();
  showZones();
  announce(word);
}

/** While something is drawn, Undo takes back its corners and nothing else. */
function undo() {
  if (editor.drag) return;
  if (editor.tool !== "select") takeBackCorner();
  else goTo(editor.done, editor.undone, "Undone.");
}

function redo() {
  if (editor.drag) return;
  if (editor.tool === "select") return goTo(editor.undone, editor.done, "Done again.");
  const corner = editor.takenBack.pop();
  if (corner) cornerIsSet(corner);
}

function takeBackCorner() {
  const corner = editor.drawing.pop();
  if (!corner) return;
  editor.takenBack.push(corner);
  editor.note = "";
  keepDraft();
  showZones();
  announce(`Removed; ${editor.drawing.length} are left.`);
}

/* Opening */

addView("zones", {
  alone: true,
  title: () => `Zones of ${editor.stream}`,
  open: openZones,
  close() {
    commit();
    Object.assign(editor, { pointer: null, drag: null, note: "" });
    if (!editor.drawing.length) stopDrawing();
    havePictures.delete(editor.stream);
  },
  detail: () => editor.stream,
  pictures: () => (editor.picture && byId("zones-live").value !== "all" ? [] : [editor.stream]),
  draw: takeStill,
  update: ({ detail }) => takeDetail(detail?.known),
  refresh: showStanding,
});

function openZones(stream) {
  if (editor.stream !== stream) {
    editor.picture?.bitmap.close();
    const frame = rows.get(stream)?.size;
    Object.assign(editor, {
      stream, base: null, version: "", outline: "", draft: noShapes(), committed: JSON.stringify(noShapes()), undone: [], done: [], selected: null, tool: "select",
      drawing: [], begun: {}, takenBack: [], note: "", hasCursor: false, pointer: null, drag: null, picture: null, boxes: [], refused: [], theirs: null, isRead: false,
      frame: frame ? { width: frame[0], height: frame[1] } : { width: 16, height: 9 },
    });
    Object.assign(byId("zones-canvas"), { width: 16, height: 9 });
    for (const id of ["zones-applied", "zones-copied", "zones-apply-problem"]) setText(byId(id), "");
    const kept = keptDraft(stream);
    if (kept?.draft && kept.base) {
      Object.assign(editor, { ...kept, committed: JSON.stringify(kept.draft) });
      if (isDirty()) editor.done = [JSON.stringify(kept.base)];
    } else if (kept?.drawing) Object.assign(editor, { tool: kept.tool, drawing: kept.drawing, begun: kept.begun ?? {} });
    if (isDirty() || Object.keys(allBegun()).length) announce("What you drew before and did not apply is still here.");
  }
  setText(byId("zones-title"), `Zones of ${stream}`);
  byId("zones-back").href = addressOf("stream", stream);
  showZones();
  readAccount().then(readSettings);
}

/** Reads how the shapes are configured; where the server does not say, their published outlines have to do. */
async function readSettings() {
  const { stream } = editor;
  const [known, rules] = [await getSettings(stream), await getRules()];
  editor.isRead = true;
  if (rules) editor.rules = rules.rules;
  if (!known || editor.stream !== stream) return showZones();
  const configured = fromSettings(known.settings);
  if (editor.base === null || !isDirty() || textOfLists(configured) === textOfLists(editor.draft)) adopt(configured, known.version);
  else {
    const isSame = editor.version === known.version || !mergeLists(editor.base, editor.draft, configured).news.length;
    editor.theirs = isSame ? null : { lists: configured, version: known.version };
    if (isSame) Object.assign(editor, { base: withIds(configured, editor.base), version: known.version });
    keepDraft();
  }
  return showZones();
}

/** Begins with what is configured. @param {Lists} lists @param {string} version */
function adopt(lists, version) {
  const at = editor.selected && editor.draft[editor.selected.kind].indexOf(editor.selected.shape);
  if (editor.base === null || textOfLists(lists) !== textOfLists(editor.base)) {
    // Undo would take back what someone else has done.
    Object.assign(editor, { done: [], undone: [] });
    if (editor.base && version) setText(byId("zones-applied"), "Someone else has changed them meanwhile. This is how they are now.");
  }
  editor.base = withIds(lists, editor.draft);
  editor.draft = /** @type {Lists} */ (listsOf(editor.base));
  editor.version = version;
  editor.committed = JSON.stringify(editor.draft);
  editor.theirs = null;
  const again = editor.selected && editor.draft[editor.selected.kind][at ?? -1];
  editor.selected = again ? { kind: /** @type {Entry} */ (editor.selected).kind, shape: again } : null;
  keepDraft();
}

/** Takes what is known of the stream now. @param {any} known */
function takeDetail(known) {
  if (!known || known.stream !== editor.stream) return showStanding();
  const outline = JSON.stringify(known.geometry);
  const isNews = outline !== editor.outline;
  if (editor.outline && isNews) readSettings();
  editor.outline = outline;
  // Without settings: the first outlines may be none, because frames of a stream may come before its state.
  const isOutlined = editor.isRead && editor.version === "";
  if (isOutlined && (editor.base === null || (isNews && !isDirty()))) adopt(fromSettings(known.geometry ?? {}), "");
  if (known.frame && byId("zones-live").value === "boxes") {
    editor.frame = { width: known.frame.width, height: known.frame.height };
    editor.boxes = known.detections;
  }
  showStanding();
  if (!editor.drag) showZones();
  return undefined;
}

/** @param {ImageBitmap} bitmap @param {any} shot */
function takeStill(bitmap, shot) {
  editor.picture?.bitmap.close();
  editor.picture = { bitmap, takenAt: shot.frame.captured_at };
  editor.frame = { width: shot.frame.width, height: shot.frame.height };
  editor.boxes = shot.detections;
  const canvas = byId("zones-canvas");
  Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
  canvas.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0);
  if (!editor.drag) showZones();
  askAgain();
  if (account.reads && byId("zones-live").value === "boxes") sharpen(editor.picture);
}

/** Replaces a small picture by the newest frame in full. @param {any} shown */
async function sharpen(shown) {
  try {
    const answer = await fetch(`/api/streams/${encodeURIComponent(editor.stream)}/picture`);
    if (!answer.ok) return;
    const bitmap = await createImageBitmap(await answer.blob());
    if (editor.picture !== shown || byId("zones-live").value !== "boxes") return bitmap.close();
    shown.bitmap.close();
    Object.assign(shown, { bitmap, takenAt: serverNow() });
    const canvas = byId("zones-canvas");
    Object.assign(canvas, { width: bitmap.width, height: bitmap.height });
    canvas.getContext("2d", { alpha: false }).drawImage(bitmap, 0, 0);
    showZones();
  } catch {
    // the small one is good enough
  }
}

/* Showing */

/** Pixels of the screen in the picture. */
const place = ([x, y]) => [x * byId("zones-picture").clientWidth, y * byId("zones-picture").clientHeight];
const percentOf = (part) => `${(part * 100).toFixed(1).replace(/\.0$/, "")} %`;
const inWords = ([x, y]) => `${percentOf(x)} across, ${percentOf(y)} down`;
/** @returns {Entry[]} */
const entries = () => KINDS_OF_SHAPES.flatMap((kind) => editor.draft[kind].map((shape) => ({ kind, shape })));
const problemsOfEntry = ({ kind, shape }) => problemsOf(kind, shape, editor.draft[kind]);
const isSelected = ({ shape }) => editor.selected?.shape === shape;

/** Shapes without a problem, which are those that can be asked what they hold. */
const soundShapes = () => ({
  zones: editor.draft.zones.filter((shape) => !problemOfPoints("zones", shape.points)),
  masks: editor.draft.masks.filter((shape) => !problemOfPoints("masks", shape.points)),
});

function showZones() {
  if (address.name !== "zones") return;
  const surface = byId("zones-picture");
  surface.style.setProperty("--ratio", `${editor.frame.width} / ${editor.frame.height}`);
  surface.style.setProperty("--ratio-number", String(editor.frame.width / editor.frame.height));
  surface.dataset.tool = editor.tool;
  const shapes = soundShapes();
  const found = editor.boxes.slice(0, MAX_SHOWN_BOXES).map((one) => ({ ...one, verdict: verdictOf(shapes, one, editor.frame) }));
  drawEditor(found);
  showHandles();
  showEntries(found);
  showShape();
  showResult();
  showStanding();
  for (const button of document.querySelectorAll("#zones-view [data-tool]")) {
    if (button.tagName === "BUTTON") setAttribute(button, "aria-pressed", String(button.dataset.tool === editor.tool));
  }
  const [back, forth] = editor.tool === "select" ? [editor.done, editor.undone] : [editor.drawing, editor.takenBack];
  setAttribute(byId("zones-undo"), "aria-disabled", String(!back.length));
  setAttribute(byId("zones-redo"), "aria-disabled", String(!forth.length));
  setText(byId("zones-note"), editor.note);
  setText(byId("zones-hint"), TOOL_HINTS[editor.tool]);
  setText(byId("zones-keys"), editor.tool === "select" ? SELECT_KEYS : DRAW_KEYS);
  byId("zones-finish").hidden = editor.tool === "lines" || editor.drawing.length < 3;
  byId("zones-cancel").hidden = editor.tool === "select";
}

/** Shows what may change while no one does anything. */
function showStanding() {
  if (address.name !== "zones") return;
  const row = rows.get(editor.stream);
  const gone = !row && (heard.daemon ? rows.size > 0 || hasNoStreams() : false);
  let warning = gone ? "There is no stream of this name any more. What you drew stays here as text." : "";
  if (editor.theirs && editor.base) {
    const { news, lost } = mergeLists(editor.base, editor.draft, editor.theirs.lists);
    warning = `Someone else has changed this stream meanwhile: ${news.join(", ")}.${lost.length ? ` You have changed ${lost.join(" and ")} as well: Keep both takes yours.` : ""}`;
  }
  setText(byId("zones-warning"), warning);
  byId("zones-warning").hidden = !warning;
  byId("zones-conflict").hidden = !editor.theirs;
  const veil = byId("zones-veil");
  veil.hidden = editor.picture !== null;
  if (!row) setText(veil, gone ? "No picture" : "Loading the stream …");
  else setText(veil, row.state === "up" ? "Waiting for a picture …" : `No picture: ${whyNot(row) || whatNow(row)}`);
  const live = { boxes: "boxes are live", still: "boxes are those of this picture", all: "live" }[byId("zones-live").value];
  setText(byId("zones-caption"), editor.picture ? `Picture of ${clock(editor.picture.takenAt)}, ${editor.frame.width} × ${editor.frame.height}; ${live}. Zones are parts of its width and height.` : "");
}

const tagOf = (kind) => NOUNS[kind];

/** Draws everything that is not a control. @param {any[]} found */
function drawEditor(found) {
  const svg = byId("zones-drawing");
  const points = (list) => list.map((point) => place(point).map((side) => side.toFixed(1)).join(",")).join(" ");
  const parts = [];
  for (const entry of [...entries()].sort((a, b) => Number(isSelected(a)) - Number(isSelected(b)))) {
    const { kind, shape } = entry;
    const problems = problemsOfEntry(entry);
    const classes = [tagOf(kind), isSelected(entry) ? "chosen" : "", Object.keys(problems).length ? "wrong" : ""].join(" ").trim();
    const outline = makeSvg(kind === "lines" ? "polyline" : "polygon", { class: classes, points: points(shape.points), "data-name": shape.name });
    outline.addEventListener("pointerdown", (event) => grabShape(event, entry));
    if (kind === "lines") {
      const wide = makeSvg("polyline", { class: "grip", points: points(shape.points) });
      wide.addEventListener("pointerdown", (event) => grabShape(event, entry));
      parts.push(wide);
    }
    parts.push(outline);
    if (kind === "lines" && shape.points.length === 2) parts.push(...arrowOf(shape.points, isSelected(entry)));
  }
  /** @type {{x: number, y: number, end: number}[]} */
  const taken = [];
  const names = entries().map((entry) => nameOf(entry, taken));
  for (const one of found) parts.push(...boxOf(one, taken));
  parts.push(...names);
  for (const [tool, corners] of Object.entries(editor.begun)) parts.push(...begunShape(tool, corners, points(corners)));
  if (editor.drawing.length || editor.pointer || editor.hasCursor) parts.push(...draftOf(points));
  svg.replaceChildren(...parts);
}

/** About how wide and high a letter over the picture is, in pixels. */
const LETTER = { width: 7, height: 14 };
/** On a narrower picture only the zone stands at a box. */
const NARROW_PICTURE = 480;

/** Where a text stands, in the picture as a whole; null where it would cover another. */
function placeText(text, x, y, taken) {
  const wide = text.length * LETTER.width;
  const at = { x: Math.max(Math.min(x, byId("zones-picture").clientWidth - wide - 4), 4), y: Math.max(y, LETTER.height), end: 0 };
  at.end = at.x + wide;
  return taken.some((other) => Math.abs(other.y - at.y) < LETTER.height && other.x < at.end && other.end > at.x) ? null : at;
}

function nameOf({ kind, shape }, taken) {
  const [x, y] = place(shape.points.reduce((top, point) => (point[1] < top[1] ? point : top)));
  const text = [...shape.name].slice(0, 24).join("");
  // A shape is always named: above its corner, or below where another name stands there.
  const at = placeText(text, x, y - 6, taken) ?? placeText(text, x, y + LETTER.height + 2, taken) ?? placeText(text, x, y - 6, []);
  taken.push(at);
  return makeSvg("text", { class: tagOf(kind), x: at.x, y: at.y, text });
}

/** An arrow from the middle of a line to its right: that way counts as "in". */
function arrowOf([start, end], isNamed) {
  const [[x1, y1], [x2, y2]] = [place(start), place(end)];
  const length = Math.hypot(x2 - x1, y2 - y1) || 1;
  const [nx, ny] = [-(y2 - y1) / length, (x2 - x1) / length];
  const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
  const at = (along, across) => `${(mx + ny * along + nx * across).toFixed(1)},${(my - nx * along + ny * across).toFixed(1)}`;
  const side = (text, across) => makeSvg("text", { class: "side", x: mx + nx * across, y: my + ny * across + 4, "text-anchor": "middle", text });
  const arrow = makeSvg("polygon", { class: "arrow", points: `${at(-8, 0)} ${at(0, 16)} ${at(8, 0)}` });
  return isNamed ? [arrow, side("in", 28), side("out", -20)] : [arrow];
}

/** A box, its anchor, and which zones hold it, as far as there is room to say so. */
function boxOf({ label, score, box, verdict }, taken) {
  const { width, height } = editor.frame;
  const [x1, y1, x2, y2] = box;
  const [[left, top], [right, bottom]] = [place([x1 / width, y1 / height]), place([x2 / width, y2 / height])];
  const kind = verdict.masks.length ? "masked" : verdict.zones.length ? "held" : "free";
  const anchor = editor.selected?.shape.anchor ?? "bottom";
  const [ax, ay] = place(anchorOf(box, anchor === "any" ? "bottom" : anchor).map((side, axis) => side / (axis ? height : width)));
  const where = verdict.masks.length ? `masked by ${verdict.masks[0]}` : verdict.zones.join(", ");
  const parts = [
    makeSvg("rect", { class: `box ${kind}`, x: left, y: top, width: Math.max(right - left, 1), height: Math.max(bottom - top, 1) }),
    makeSvg("circle", { class: `anchor ${kind}`, cx: ax, cy: ay, r: anchor === "any" ? 0 : 4.5 }),
  ];
  const text = byId("zones-picture").clientWidth < NARROW_PICTURE ? where : `${label} ${percent(score)}: ${where}`;
  const at = kind === "free" ? null : placeText(text, left, top - 4, taken);
  if (at) {
    taken.push(at);
    parts.push(makeSvg("text", { class: `verdict ${kind}`, x: at.x, y: at.y, text }));
  }
  return parts;
}

/** What has been drawn so far of a shape. @param {string} tool @param {[number, number][]} corners @param {string} points along its outline */
function begunShape(tool, corners, points, isArea = false) {
  const outline = makeSvg(isArea ? "polygon" : "polyline", { class: `${tagOf(tool)} drawn`, points });
  const dots = corners.map((corner) => {
    const [x, y] = place(corner);
    return makeSvg("circle", { class: "set", cx: x, cy: y, r: 5 });
  });
  return [outline, ...dots];
}

/** What is being drawn: its corners so far, and the way to the cursor or the pointer. */
function draftOf(points) {
  const end = editor.hasCursor ? editor.cursor : editor.pointer;
  const set = editor.drag?.kind === "rectangle" ? cornersOf(editor.drag.from, editor.pointer ?? editor.drag.from) : editor.drawing;
  const isArea = editor.drag?.kind === "rectangle" && editor.tool !== "lines";
  const parts = begunShape(editor.tool, set, points(isArea ? set : end && editor.drag?.kind !== "rectangle" ? [...set, end] : set), isArea);
  if (editor.hasCursor) {
    const [x, y] = place(editor.cursor);
    parts.push(makeSvg("path", { class: "cursor under", d: `M${x - 14} ${y}h28M${x} ${y - 14}v28` }), makeSvg("path", { class: "cursor", d: `M${x - 14} ${y}h28M${x} ${y - 14}v28` }));
  }
  return parts;
}

/** Corners of the selected shape, and middles of its sides, as buttons; they stay the same ones as long as they can. */
function showHandles() {
  const holder = byId("zones-handles");
  const { selected } = editor;
  const wanted = selected && editor.tool === "select" ? handlesOf(selected) : [];
  const isSame = wanted.length === holder.children.length && wanted.every(({ role }, at) => holder.children[at].dataset.role === role);
  if (!isSame) {
    const had = document.activeElement?.closest("#zones-handles button")?.dataset.role;
    holder.replaceChildren(...wanted.map(({ role }) => makeHandle(role)));
    if (had) (holder.querySelector(`[data-role="${had}"]`) ?? holder.querySelector("button") ?? byId("zones-picture")).focus();
  }
  wanted.forEach(({ point, label }, at) => {
    const button = holder.children[at];
    const [x, y] = place(point);
    Object.assign(button.style, { left: `${x}px`, top: `${y}px` });
    setAttribute(button, "aria-label", label);
  });
}

function handlesOf({ kind, shape }) {
  const { points, name } = shape;
  const corner = kind === "lines" ? ["Start", "End"] : points.map((_, at) => `Corner ${at + 1}`);
  // Of a line beside its arrow.
  const middle = [0, 1].map((axis) => (kind === "lines" ? (2 * points[0][axis] + points[1][axis]) / 3 : points.reduce((sum, point) => sum + point[axis], 0) / points.length));
  const handles = [{ role: "whole", point: middle, label: `All of ${NOUNS[kind]} ${name}: arrows move it` }];
  points.forEach((point, at) => handles.push({ role: `corner-${at}`, point, label: `${corner[at]} of ${NOUNS[kind]} ${name}: ${inWords(point)}` }));
  if (kind !== "lines" && points.length < MAX_POINTS) {
    points.forEach((point, at) => {
      const next = points[(at + 1) % points.length];
      const [[x1, y1], [x2, y2]] = [place(point), place(next)];
      if (Math.hypot(x2 - x1, y2 - y1) < MIN_SIDE_PIXELS) return;
      handles.push({ role: `side-${at}`, point: [(point[0] + next[0]) / 2, (point[1] + next[1]) / 2], label: `New corner after corner ${at + 1}` });
    });
  }
  return handles;
}

function makeHandle(role) {
  const [kind, at] = role.split("-");
  const button = make("button", { type: "button", class: `handle ${kind}`, "data-role": role, tabindex: kind === "side" ? -1 : 0 });
  button.addEventListener("pointerdown", (event) => grabHandle(event, kind, Number(at)));
  button.addEventListener("keydown", (event) => handleKey(event, kind, Number(at)));
  button.addEventListener("keyup", commit);
  button.addEventListener("blur", () => editor.drag || commit());
  return button;
}

/** The list of shapes: what they are, how many boxes they hold now, what is wrong with them. @param {any[]} found */
function showEntries(found) {
  const list = byId("zones-list");
  const all = entries();
  while (list.children.length > all.length) list.lastChild.remove();
  all.forEach((entry, at) => {
    const { kind, shape } = entry;
    const item = list.children[at] ?? list.appendChild(makeListItem());
    const button = item.firstChild;
    const [swatch, name, what] = button.children;
    button.onclick = () => select(entry);
    setAttribute(swatch, "class", `swatch ${tagOf(kind)}`);
    setText(name, shape.name || "(no name)");
    const number = kind === "lines" ? 0 : found.filter(({ verdict }) => verdict[kind].includes(shape.name)).length;
    const held = kind === "lines" ? "" : kind === "masks" ? `, ${number} masked now` : `, ${number} now`;
    const wrong = Object.keys(problemsOfEntry(entry)).length || refusedOf(kind, shape).length ? ", has a mistake" : "";
    setText(what, `${NOUNS[kind]}${held}${wrong}`);
    setAttribute(button, "aria-pressed", String(isSelected(entry)));
    button.classList.toggle("wrong", wrong !== "");
  });
  byId("zones-none").hidden = all.length > 0;
  const problems = KINDS_OF_SHAPES.map((kind) => [kind, problemOfList(editor.draft[kind])]).filter(([, problem]) => problem);
  setText(byId("zones-list-problem"), problems.map(([kind, problem]) => `${kind} ${problem}`).join("; "));
}

const makeListItem = () =>
  make("li", {}, make("button", { type: "button", class: "zones-item" }, make("i", { class: "swatch" }), make("strong"), make("span")));

/** The fields of the selected shape. */
function showShape() {
  const form = byId("zones-shape");
  const { selected } = editor;
  form.hidden = !selected;
  if (!selected) return;
  const { kind, shape } = selected;
  setText(byId("zones-shape-title"), `${NOUNS[kind][0].toUpperCase()}${NOUNS[kind].slice(1)} ${shape.name}`);
  const problems = problemsOfEntry(selected);
  const values = {
    name: shape.name, labels: (shape.labels ?? []).join(", "), anchor: shape.anchor ?? "bottom", min_score: shape.min_score || "", min_size: shape.min_size || "",
    max_size: (shape.max_size ?? 1) === 1 ? "" : shape.max_size, dwell_seconds: (shape.dwell_seconds ?? []).join(", "), loiter_seconds: shape.loiter_seconds ?? "",
  };
  const absent = { zones: [], lines: ["dwell_seconds", "loiter_seconds"], masks: ["min_score", "dwell_seconds", "loiter_seconds"] }[kind];
  for (const [key, value] of Object.entries(values)) {
    const field = form.elements[key];
    form.querySelector(`[data-key="${key}"]`).hidden = absent.includes(key);
    if (document.activeElement !== field) field.value = Number.isNaN(value) ? field.value : String(value);
    if (problems[key]) field.setAttribute("aria-invalid", "true");
    else field.removeAttribute("aria-invalid");
  }
  form.elements.anchor.querySelector("[value=any]").disabled = kind === "lines";
  const words = Object.entries(problems).map(([key, text]) => problemInWords({ path: [key], text }));
  const small = kind !== "lines" && !words.length && areaOf(shape.points) < SMALL_PART ? ["It is very small: is that meant?"] : [];
  setText(byId("zones-shape-problem"), [...words, ...refusedOf(kind, shape), ...small].join(" "));
  const near = problems.name && slug(shape.name);
  byId("zones-slug").hidden = !near || near === shape.name;
  if (near) setText(byId("zones-slug"), `Use the name ${near}`);
  byId("zones-sides").hidden = byId("zones-swap").hidden = kind !== "lines";
  setText(byId("zones-sides"), kind === "lines" ? "Objects that cross in the direction of the arrow go in, the others out." : "");
  byId("zones-rule").hidden = kind === "masks";
  byId("zones-rule").href = addressOf("rules", "", { stream: editor.stream, [NOUNS[kind]]: shape.name });
}

/** What the server has refused of one shape. */
const refusedOf = (kind, shape) =>
  editor.refused.filter(({ path }) => path[0] === kind && (path[1] === shape.name || path[1] === editor.draft[kind].indexOf(shape))).map(({ path, text }) => problemInWords({ path: path.slice(2), text }));

/** Of a polygon, as a part of the picture. */
function areaOf(points) {
  const twice = points.reduce((sum, [x, y], at) => sum + x * points[(at + 1) % points.length][1] - points[(at + 1) % points.length][0] * y, 0);
  return Math.abs(twice) / 2;
}

/** Everything that is wrong with the draft. */
const countProblems = () => entries().filter((entry) => Object.keys(problemsOfEntry(entry)).length).length + KINDS_OF_SHAPES.filter((kind) => problemOfList(editor.draft[kind])).length;

function showResult() {
  const wrong = countProblems();
  const dirty = isDirty();
  setText(byId("zones-toml"), tomlOfShapes(editor.stream, editor.draft));
  const may = account.mayChange;
  let standing = dirty ? "You have changes that are not applied." : "As configured.";
  if (editor.base === null) standing = "Reading what is configured …";
  for (const tool of Object.keys(allBegun())) standing = `${standing} The ${NOUNS[tool]} that you are drawing is not finished.`;
  if (wrong) standing = `${wrong === 1 ? "One of them has a mistake" : `${wrong} have mistakes`}: it says above what is wrong.`;
  else if (dirty && !may) standing = "Not applied: copy the text into the file of the daemon and reload it.";
  if (!account.reads && editor.base && entries().length) standing += " Of shapes that were there before, only the outlines are known here: compare labels and sizes with the file.";
  setText(byId("zones-standing"), standing);
  setText(byId("zones-carried"), may ? carriedInWords() : "");
  setText(byId("zones-may"), may || !account.whyNot ? "" : `${account.whyNot} You can draw, and copy the text into the file of the daemon.`);
  // What is to be done next stands out: a rule needs a zone that is applied.
  byId("zones-rule").classList.toggle("primary", !dirty || !may);
  byId("zones-apply-part").hidden = byId("zones-apply").hidden = !may;
  setAttribute(byId("zones-apply"), "aria-disabled", String(!dirty || wrong > 0 || editor.theirs !== null || editor.isApplying));
  setAttribute(byId("zones-discard"), "aria-disabled", String(!dirty));
}

/* Editing */

/** @param {Entry | null} entry */
function select(entry) {
  if (editor.selected?.shape !== entry?.shape) {
    commit();
    editor.selected = entry;
    if (entry) announce(`${NOUNS[entry.kind]} ${entry.shape.name} selected. ${Object.entries(problemsOfEntry(entry)).map(([key, text]) => problemInWords({ path: [key], text })).join(" ")}`);
  }
  showZones();
}

const rounded = ([x, y]) => /** @type {[number, number]} */ ([x, y].map((part) => Math.round(Math.min(1, Math.max(0, part)) * DIGITS) / DIGITS));

/** A point of the screen as parts of the picture; near an edge or a corner of another shape it is that. */
function pointAt(event, except = null) {
  const { left, top, width, height } = byId("zones-picture").getBoundingClientRect();
  const [x, y] = [event.clientX - left, event.clientY - top];
  if (event.altKey) return rounded([x / width, y / height]);
  for (const { shape } of entries()) {
    if (shape === except) continue;
    for (const point of shape.points) {
      if (Math.hypot(point[0] * width - x, point[1] * height - y) < SNAP_PIXELS) return /** @type {[number, number]} */ ([...point]);
    }
  }
  const snapped = (at, size) => (at < SNAP_PIXELS ? 0 : at > size - SNAP_PIXELS ? 1 : at / size);
  return rounded([snapped(x, width), snapped(y, height)]);
}

const cornersOf = ([x1, y1], [x2, y2]) => (editor.tool === "lines" ? [[x1, y1], [x2, y2]] : [[Math.min(x1, x2), Math.min(y1, y2)], [Math.max(x1, x2), Math.min(y1, y2)], [Math.max(x1, x2), Math.max(y1, y2)], [Math.min(x1, x2), Math.max(y1, y2)]]);

/** What is begun with another tool waits until that is chosen again. @param {string} tool @param {boolean} byKey */
function chooseTool(tool, byKey) {
  commit();
  if (tool !== editor.tool) {
    const { [tool]: drawing = [], ...begun } = allBegun();
    Object.assign(editor, { drawing, begun, takenBack: [] });
  }
  Object.assign(editor, { tool, pointer: null, drag: null, note: "", hasCursor: byKey && tool !== "select" });
  keepDraft();
  if (tool !== "select") editor.selected = null;
  showZones();
  if (byKey && tool !== "select") {
    byId("zones-picture").focus();
    const set = editor.drawing.length;
    announce(`Drawing a ${NOUNS[tool]}. ${set ? `${set} ${tool === "lines" ? "end" : "corner"}${set === 1 ? " is" : "s are"} set. ` : ""}The cursor is at ${inWords(editor.cursor)}. Arrow keys move it, with Shift further; Enter sets ${tool === "lines" ? "an end" : "a corner"}.`);
  }
}

/** Drops what is being drawn. */
function cancelDrawing() {
  editor.drawing = [];
  chooseTool("select", true);
}

const stopDrawing = () => Object.assign(editor, { tool: "select", drawing: [], takenBack: [], note: "", pointer: null, drag: null, hasCursor: false });

/** Says over the picture why nothing was done. @param {string} note */
function explainDrawing(note) {
  editor.note = note;
  showZones();
  announce(note);
}

/** What there must be before a shape of this kind can be finished. */
const neededCorners = () => (editor.tool === "lines" ? "A line needs two ends." : `A ${NOUNS[editor.tool]} needs three corners.`);

/** A name that no shape has yet. @param {Entry["kind"]} kind @param {Lists} [lists] */
function freeName(kind, lists = editor.draft) {
  const taken = new Set(lists[kind].map(({ name }) => name));
  for (let number = 1; ; number++) if (!taken.has(`${NOUNS[kind]}-${number}`)) return `${NOUNS[kind]}-${number}`;
}

/** Ends drawing with a new shape. @param {[number, number][]} points @param {boolean} focusesName */
function finish(points, focusesName) {
  const kind = /** @type {Entry["kind"]} */ (editor.tool);
  const shape = { name: freeName(kind), points, id: newId() };
  editor.draft[kind].push(shape);
  stopDrawing();
  editor.selected = { kind, shape };
  commit();
  const number = editor.boxes.filter((one) => kind !== "lines" && holds(kind, shape, one, editor.frame)).length;
  announce(`${NOUNS[kind]} ${shape.name} drawn with ${points.length} ${kind === "lines" ? "ends" : "corners"}. ${kind === "lines" ? "" : `It holds ${number} of ${editor.boxes.length} boxes now. `}You can name it.`);
  if (!focusesName) return;
  const field = byId("zones-shape").elements.name;
  field.focus();
  field.select();
}

/** Sets a corner; the first one again finishes. @param {[number, number]} point @param {number} nearness how near is the same, as a part of the picture @param {boolean} focusesName */
function setCorner(point, nearness, focusesName) {
  const { drawing, tool } = editor;
  const isAt = (other) => Math.abs(other[0] - point[0]) <= nearness && Math.abs(other[1] - point[1]) <= nearness;
  if (tool !== "lines" && drawing.length >= 3 && (isAt(drawing[0]) || isAt(drawing[drawing.length - 1]))) return finish(drawing, focusesName);
  if (drawing.length && drawing.length < 3 && isAt(drawing[0])) return explainDrawing(neededCorners());
  if (drawing.some((other) => other[0] === point[0] && other[1] === point[1])) return explainDrawing("There is a corner already.");
  editor.takenBack = [];
  if (tool === "lines" && drawing.length === 1) return finish([...drawing, point], focusesName);
  return cornerIsSet(point);
}

/** @param {[number, number]} point */
function cornerIsSet(point) {
  editor.drawing.push(point);
  editor.note = "";
  keepDraft();
  showZones();
  announce(`${editor.tool === "lines" ? "Start" : `Corner ${editor.drawing.length}`} at ${inWords(point)}.`);
}

/** Moves some corners of a shape together, and keeps it in the picture. */
function moveBy(shape, which, [dx, dy]) {
  const moved = which.map((at) => shape.points[at]);
  const clamp = (axis, by) => Math.min(Math.max(by, -Math.min(...moved.map((point) => point[axis]))), 1 - Math.max(...moved.map((point) => point[axis])));
  const [x, y] = [clamp(0, dx), clamp(1, dy)];
  shape.points = shape.points.map((point, at) => (which.includes(at) ? rounded([point[0] + x, point[1] + y]) : point));
}

const everyCorner = (shape) => shape.points.map((_, at) => at);

function removeCorner(at) {
  const { kind, shape } = /** @type {Entry} */ (editor.selected);
  if (kind === "lines" || shape.points.length <= 3) return announce(kind === "lines" ? "A line needs both ends; Delete on the whole line removes it." : "A polygon needs three corners; Delete on the whole shape removes it.");
  shape.points = shape.points.filter((_, each) => each !== at);
  commit();
  return announce(`Corner ${at + 1} removed; ${shape.points.length} are left.`);
}

function addCorner(after, point) {
  const { shape } = /** @type {Entry} */ (editor.selected);
  shape.points = [...shape.points.slice(0, after + 1), point, ...shape.points.slice(after + 1)];
}

function removeSelected() {
  if (!editor.selected) return;
  const { kind, shape } = editor.selected;
  editor.draft[kind] = editor.draft[kind].filter((each) => each !== shape);
  editor.selected = null;
  const hadFocus = document.activeElement?.closest("#zones-handles, #zones-shape") !== null;
  commit();
  announce(`${NOUNS[kind]} ${shape.name} deleted. Undo brings it back.`);
  if (hadFocus) (byId("zones-list").querySelector("button") ?? byId("zones-picture")).focus();
}

function duplicate() {
  if (!editor.selected) return;
  const { kind, shape } = editor.selected;
  const copied = { ...JSON.parse(JSON.stringify(shape)), name: freeName(kind), id: newId() };
  moveBy(copied, everyCorner(copied), [0.03, 0.03]);
  if (JSON.stringify(copied.points) === JSON.stringify(shape.points)) moveBy(copied, everyCorner(copied), [-0.03, -0.03]);
  editor.draft[kind].push(copied);
  editor.selected = { kind, shape: copied };
  commit();
  announce(`Duplicated as ${copied.name}.`);
}

/** Numbers with commas between them; what is no number stays as NaN, which is wrong. */
const numbersIn = (text) => text.split(/[\s,;]+/).filter(Boolean).map(Number);

function editField({ name, value }) {
  if (!editor.selected) return;
  const { shape } = editor.selected;
  const text = value.trim();
  if (name === "name" || name === "anchor") shape[name] = value;
  else if (name === "labels") shape.labels = text.split(/\s*,\s*/).filter(Boolean);
  else if (name === "dwell_seconds") shape.dwell_seconds = numbersIn(text);
  else if (text === "") delete shape[name];
  else shape[name] = Number(text.replace(",", "."));
  keepDraft();
  showZones();
}

/* The pointer */

function grabShape(event, entry) {
  if (editor.tool !== "select" || event.button !== 0) return;
  event.stopPropagation();
  const isTouch = event.pointerType === "touch";
  // A finger scrolls the page; it moves only what is selected already.
  const mayMove = !isTouch || isSelected(entry);
  select(entry);
  if (mayMove) grab(event, { kind: "whole", last: [event.clientX, event.clientY], shape: entry.shape });
}

function grabHandle(event, kind, at) {
  if (event.button !== 0 || !editor.selected) return;
  event.stopPropagation();
  const { shape } = editor.selected;
  if (kind === "whole") return grab(event, { kind, last: [event.clientX, event.clientY], shape });
  if (kind === "side") {
    addCorner(at, rounded(shape.points[at].map((part, axis) => (part + shape.points[(at + 1) % shape.points.length][axis]) / 2)));
    return grab(event, { kind: "corner", at: at + 1, shape });
  }
  return grab(event, { kind: "corner", at, shape });
}

function grab(event, drag) {
  editor.drag = { ...drag, id: event.pointerId };
  try {
    byId("zones-picture").setPointerCapture(event.pointerId);
  } catch {
    // the pointer is gone already
  }
}

function pressOn(event) {
  if (event.button !== 0 || editor.drag) return;
  if (editor.tool === "select") return void (event.pointerType !== "touch" && select(null));
  const from = pointAt(event);
  editor.hasCursor = false;
  grab(event, { kind: "press", from, at: [event.clientX, event.clientY] });
}

function moveOn(event) {
  const { drag } = editor;
  if (!drag) {
    if (editor.tool !== "select" && event.pointerType !== "touch") {
      editor.pointer = pointAt(event);
      editor.hasCursor = false;
      showZones();
    }
    return;
  }
  if (event.pointerId !== drag.id) return;
  if (drag.kind === "press" && Math.hypot(event.clientX - drag.at[0], event.clientY - drag.at[1]) > DRAG_PIXELS && !editor.drawing.length) drag.kind = "rectangle";
  if (drag.kind === "rectangle" || drag.kind === "press") editor.pointer = pointAt(event);
  else if (drag.kind === "corner") drag.shape.points = drag.shape.points.map((point, at) => (at === drag.at ? pointAt(event, drag.shape) : point));
  else if (drag.kind === "whole") {
    const { width, height } = byId("zones-picture").getBoundingClientRect();
    moveBy(drag.shape, everyCorner(drag.shape), [(event.clientX - drag.last[0]) / width, (event.clientY - drag.last[1]) / height]);
    drag.last = [event.clientX, event.clientY];
  }
  showZones();
}

function release(event) {
  const { drag } = editor;
  if (!drag || event.pointerId !== drag.id) return;
  editor.drag = null;
  const focusesName = event.pointerType !== "touch";
  if (drag.kind === "rectangle") {
    const to = pointAt(event);
    const points = cornersOf(drag.from, to);
    editor.pointer = null;
    if (drag.from[0] === to[0] || drag.from[1] === to[1]) {
      if (editor.tool !== "lines" || (drag.from[0] === to[0] && drag.from[1] === to[1])) return explainDrawing(editor.tool === "lines" ? neededCorners() : "A rectangle needs a width and a height: drag further.");
    }
    return finish(points, focusesName);
  }
  if (drag.kind === "press") {
    const { width } = byId("zones-picture").getBoundingClientRect();
    return setCorner(pointAt(event), SNAP_PIXELS / width, focusesName);
  }
  return commit();
}

function cancelDrag() {
  if (!editor.drag) return;
  editor.drag = null;
  editor.draft = JSON.parse(editor.committed);
  editor.selected = null;
  showZones();
}

/* The keyboard */

const MOVES = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
const stepOf = (event) => (event.shiftKey ? LONG_STEP : event.ctrlKey || event.altKey ? SHORT_STEP : STEP);

function handleKey(event, kind, at) {
  const { selected } = editor;
  if (!selected) return;
  const move = MOVES[event.key];
  const step = stepOf(event);
  event.stopPropagation();
  if (move) {
    const { shape } = selected;
    moveBy(shape, kind === "whole" ? everyCorner(shape) : [at], [move[0] * step, move[1] * step]);
    keepDraft();
    showZones();
    announceSoon(kind === "whole" ? `at ${inWords(shape.points[0])}` : inWords(shape.points[at]));
  } else if (event.key === "Delete" || event.key === "Backspace") {
    if (kind === "whole") removeSelected();
    else removeCorner(at);
  } else if ((event.key === "+" || event.key === "Insert") && kind === "corner" && selected.kind !== "lines" && selected.shape.points.length < MAX_POINTS) {
    const next = selected.shape.points[(at + 1) % selected.shape.points.length];
    addCorner(at, rounded(selected.shape.points[at].map((part, axis) => (part + next[axis]) / 2)));
    commit();
    byId("zones-handles").querySelector(`[data-role="corner-${at + 1}"]`)?.focus();
    announce(`Corner ${at + 2} added.`);
  } else if (event.key === "Escape") {
    select(null);
    byId("zones-picture").focus();
  } else return;
  event.preventDefault();
}

function surfaceKey(event) {
  if (event.target !== byId("zones-picture") || editor.tool === "select") return;
  const move = MOVES[event.key];
  if (move) {
    const step = stepOf(event);
    editor.hasCursor = true;
    editor.cursor = rounded([editor.cursor[0] + move[0] * step, editor.cursor[1] + move[1] * step]);
    announceSoon(inWords(editor.cursor));
  } else if (event.key === "Enter" || event.key === " ") {
    editor.hasCursor = true;
    setCorner([...editor.cursor], STEP / 2, true);
  } else if (event.key === "Backspace" && editor.drawing.length) takeBackCorner();
  else if (event.key.toLowerCase() === "f" && !event.ctrlKey && !event.metaKey) {
    if (editor.drawing.length >= 3) finish(editor.drawing, true);
    else explainDrawing(neededCorners());
  }
  else if (event.key === "Escape") cancelDrawing();
  else return;
  event.preventDefault();
  event.stopPropagation();
  showZones();
}

let announcement = 0;
/** What changes with every key is read once it rests. @param {string} text */
function announceSoon(text) {
  clearTimeout(announcement);
  announcement = setTimeout(() => announce(text), 400);
}

function editorKey(event) {
  if (address.name !== "zones") return;
  const typing = event.target.closest?.("input, select, textarea");
  const key = event.key.toLowerCase();
  if (!(event.ctrlKey || event.metaKey) || typing) return;
  if (key === "z" && !event.shiftKey) undo();
  else if (key === "y" || key === "z") redo();
  else return;
  event.preventDefault();
}

/* Applying */

/** The rules that need a zone or line of this stream which is not drawn any more, or by another name. @param {any[]} rules */
function rulesWithout(rules) {
  const renamed = renamedShapes();
  return rules.flatMap((rule) => {
    const isOfStream = !rule.streams?.length || rule.streams.some((glob) => fitsGlob(glob, editor.stream));
    const [kind, name] = rule.line ? ["lines", rule.line] : ["zones", rule.zone];
    return isOfStream && name && !editor.draft[kind].some((shape) => shape.name === name) ? [{ rule: rule.name, noun: NOUNS[kind], name, renamed: renamed.find(([noun, before]) => noun === NOUNS[kind] && before === name)?.[2] ?? "" }] : [];
  });
}

/** Zones and lines with new names, where no other shape has taken the name before. @returns {[string, string, string][]} what it is, its name before and after */
function renamedShapes() {
  return ["zones", "lines"].flatMap((kind) => (editor.base?.[kind] ?? []).flatMap(({ id, name }) => {
    const now = editor.draft[kind].find((shape) => id !== undefined && shape.id === id);
    return now && !editor.draft[kind].some((shape) => shape.name === name) ? [[NOUNS[kind], name, now.name]] : [];
  }));
}

/** What an apply does to rules, as far as they are known; empty for nothing. */
function carriedInWords() {
  const carried = rulesWithout(editor.rules).filter(({ renamed }) => renamed);
  return carried.length ? `Apply also changes the rule${carried.length > 1 ? "s" : ""} ${carried.map(({ rule, noun, name, renamed }) => `${rule} (${noun} ${name} becomes ${renamed})`).join(", ")}.` : "";
}

/** A problem of a shape, with its name. @param {{path: (string | number)[], text: string}} problem */
function problemOfShape(problem) {
  const [kind, which] = problem.path;
  const shape = editor.draft[kind]?.find(({ name }, at) => name === which || at === which);
  const words = problemInWords(problem);
  return shape ? `${sentenceOf(`${NOUNS[kind]} ${shape.name}`).slice(0, -1)}: ${words[0].toLowerCase()}${words.slice(1)}` : words;
}

/** Says why nothing was applied; where rules are in the way, with the way to them. @param {{path: (string | number)[], text: string}[]} problems @param {string} problem */
async function explainRefusal(problems, problem) {
  const shown = textOfLists(editor.draft);
  editor.rules = (await getRules())?.rules ?? editor.rules;
  const users = rulesWithout(editor.rules).filter(({ renamed }) => !renamed);
  if (shown !== textOfLists(editor.draft)) return;
  const words = users.flatMap(({ rule, noun, name }) => ["The rule ", make("a", { href: addressOf("rules", rule), text: rule }), ` needs the ${noun} ${name}: it cannot be deleted. `]);
  if (users.length) words.push("Change or delete the rule first.");
  byId("zones-apply-problem").replaceChildren(...(users.length ? words : [problems.map(problemOfShape).join(" ") || problem]));
  byId("zones-apply-problem").scrollIntoView({ block: "nearest" });
}

/** @param {boolean} [isAgain] after someone else has changed other settings of the stream */
async function applyZones(isAgain = false) {
  if (byId("zones-apply").getAttribute("aria-disabled") === "true") return;
  editor.isApplying = true;
  const { stream } = editor;
  const persist = byId("zones-persist").checked;
  showZones();
  const sent = textOfLists(editor.draft);
  const version = editor.version ? { version: editor.version } : {};
  const [drawn, renamed] = [/** @type {Lists} */ (listsOf(editor.draft)), renamedShapes()];
  const { ok, problem, problems, isConflict } = await applyChange({ stream, patch: JSON.parse(sent), ...(renamed.length ? { renamed } : {}), ...version, persist });
  editor.isApplying = false;
  if (editor.stream !== stream) return;
  editor.refused = problems;
  setText(byId("zones-apply-problem"), "");
  if (isConflict) {
    await readSettings();
    if (!editor.theirs && isDirty() && !isAgain) return applyZones(true);
  } else if (!ok) await explainRefusal(problems, problem);
  if (ok) {
    editor.base = withIds(fromSettings(JSON.parse(sent)), drawn);
    await readSettings();
    keepDraft();
    setText(byId("zones-applied"), persist ? "Applied, and kept over restarts." : "Applied. It lasts until the daemon is restarted.");
    byId("zones-applied").scrollIntoView({ block: "nearest" });
  }
  return showZones();
}

function initZones() {
  const surface = byId("zones-picture");
  surface.addEventListener("pointerdown", pressOn);
  surface.addEventListener("pointermove", moveOn);
  surface.addEventListener("pointerup", release);
  surface.addEventListener("pointercancel", cancelDrag);
  surface.addEventListener("pointerleave", () => {
    if (!editor.drag && editor.pointer) {
      editor.pointer = null;
      showZones();
    }
  });
  surface.addEventListener("keydown", surfaceKey);
  document.addEventListener("keydown", editorKey);
  new ResizeObserver(() => editor.drag || showZones()).observe(surface);
  for (const button of document.querySelectorAll("#zones-view [data-tool]")) button.addEventListener("click", (event) => chooseTool(button.dataset.tool, event.detail === 0));
  byId("zones-undo").addEventListener("click", undo);
  byId("zones-redo").addEventListener("click", redo);
  byId("zones-finish").addEventListener("click", () => finish(editor.drawing, true));
  byId("zones-cancel").addEventListener("click", cancelDrawing);
  const takeAnother = () => {
    editor.picture?.bitmap.close();
    editor.picture = null;
    havePictures.delete(editor.stream);
    askAgain();
    showZones();
  };
  // Another one as well where boxes are to be those of the picture: the one that is shown may be newer than they are.
  byId("zones-live").addEventListener("change", takeAnother);
  byId("zones-picture-again").addEventListener("click", takeAnother);
  const form = byId("zones-shape");
  form.addEventListener("submit", (event) => (event.preventDefault(), commit()));
  form.addEventListener("input", (event) => editField(event.target));
  form.addEventListener("change", commit);
  byId("zones-slug").addEventListener("click", () => {
    if (!editor.selected) return;
    editor.selected.shape.name = slug(editor.selected.shape.name);
    commit();
    form.elements.name.focus();
  });
  byId("zones-swap").addEventListener("click", () => {
    if (!editor.selected) return;
    editor.selected.shape.points = [...editor.selected.shape.points].reverse();
    commit();
    announce("In and out are swapped.");
  });
  byId("zones-duplicate").addEventListener("click", duplicate);
  byId("zones-delete").addEventListener("click", removeSelected);
  byId("zones-copy").addEventListener("click", () => copyText(byId("zones-toml").textContent ?? "", byId("zones-copied")));
  byId("zones-apply").addEventListener("click", () => applyZones());
  byId("zones-discard").addEventListener("click", () => {
    if (!editor.base) return;
    editor.draft = /** @type {Lists} */ (listsOf(editor.base));
    editor.selected = null;
    commit();
    announce("Your changes are discarded. Undo brings them back.");
  });
  byId("zones-theirs").addEventListener("click", () => {
    if (editor.base) editor.draft = /** @type {Lists} */ (listsOf(editor.base));
    Object.assign(editor, { base: null, selected: null, theirs: null });
    readSettings();
  });
  byId("zones-mine").addEventListener("click", async () => {
    const { stream } = editor;
    const known = await getSettings(stream);
    if (!known || !editor.base || editor.stream !== stream) return;
    const base = withIds(fromSettings(known.settings), editor.base);
    const { lists, news } = mergeLists(editor.base, editor.draft, base);
    Object.assign(editor, { draft: lists, base, version: known.version, theirs: null, selected: null, committed: JSON.stringify(lists), done: [], undone: [] });
    keepDraft();
    showZones();
    announce(`They have ${news.join(", ")}. Your changes are kept.`);
  });
  addEventListener("beforeunload", (event) => hasDrafts() && event.preventDefault());
}
