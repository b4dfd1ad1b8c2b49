/* Pictures with what was found in them, and small diagrams. */

/** Bright on any picture, dark text readable on each. */
const PALETTE = ["#4ade80", "#60a5fa", "#fbbf24", "#f472b6", "#a78bfa", "#22d3ee", "#fb923c", "#e5e7eb"];
const KNOWN_LABELS = ["person", "bicycle", "car", "motorcycle", "bus", "truck"];
const ZONE_COLOUR = "#ffd84d";
const LINE_COLOUR = "#ff7ad9";
const LABEL_BACK = "rgb(5 7 10 / .78)";
const MAX_CANVAS_PIXELS = 1920;

/** The same colour for a label everywhere. @param {string} label */
function colourOf(label) {
  const known = KNOWN_LABELS.indexOf(label);
  if (known >= 0) return PALETTE[known];
  let sum = 0;
  for (const character of label) sum = (sum * 31 + character.codePointAt(0)) % 65521;
  return PALETTE[sum % PALETTE.length];
}

/** How wide a picture must be on the screen for these texts on its objects, in CSS pixels; a smaller one has none. */
const LABEL_TEXTS = [
  { from: 560, texts: [longText, mediumText, shortText] },
  { from: 300, texts: [mediumText, shortText] },
  { from: 200, texts: [shortText] },
];
/** An object that is less high on the screen has a box and no label, in CSS pixels. */
const MIN_LABELLED_HEIGHT = 14;
/** An object that takes more of the picture than this may be covered by labels, also its own; others never. */
const LARGE_PART = 0.15;

function shortText({ label }) {
  return label;
}
function mediumText({ label, score }) {
  return `${label} ${percent(score)}`;
}
function longText(found) {
  return found.track_id === null ? mediumText(found) : `${mediumText(found)} #${found.track_id}`;
}

/**
 * Draws a picture and what was found in that very picture.
 * @param {HTMLCanvasElement} canvas as wide as it is shown afterwards
 * @param {ImageBitmap} bitmap
 * @param {{frame: {seq: number, width: number, height: number}, detections: any[]}} shot boxes in pixels of the frame
 * @param {{boxes: boolean, labels: boolean, geometry: any}} options
 */
function drawShot(canvas, bitmap, shot, options) {
  const shown = canvas.clientWidth * Math.min(devicePixelRatio, 2);
  const width = Math.round(Math.min(MAX_CANVAS_PIXELS, Math.max(shown, 160)));
  const height = Math.round((width * shot.frame.height) / shot.frame.width);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { alpha: false });
  context.drawImage(bitmap, 0, 0, width, height);
  const unit = Math.max(1, width / Math.max(canvas.clientWidth, 1));
  const scale = width / shot.frame.width;
  // Whole pixels: lines are sharper, and whole numbers need no memory of their own in the browser.
  const found = shot.detections.map((one) => ({ ...one, box: one.box.map((side) => Math.round(side * scale)) }));
  const area = { context, width, height, unit, obstacles: found.map(({ box }) => box).filter((box) => !isLarge(box, width, height)) };
  if (options.geometry) drawGeometry(area, options.geometry);
  if (options.boxes) for (const one of found) drawBox(area, one);
  const taken = options.geometry ? drawNames(area, options.geometry) : [];
  if (options.labels) drawLabels(area, found, taken);
  canvas.dataset.frame = String(shot.frame.seq);
}

const isLarge = ([x1, y1, x2, y2], width, height) => (x2 - x1) * (y2 - y1) > LARGE_PART * width * height;

function drawBox({ context, width, unit }, { label, box: [x1, y1, x2, y2] }) {
  const line = width / unit < 400 ? 1.5 : 2;
  context.lineJoin = "round";
  for (const [style, stroke] of [["rgb(0 0 0 / .5)", line + 2], [colourOf(label), line]]) {
    context.strokeStyle = style;
    context.lineWidth = Number(stroke) * unit;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/**
 * Names objects, the nearest first. A label covers no object and no other label, and stays within the picture; where
 * there is no room around its box for a long text there may be for a shorter one, and else there is none.
 */
function drawLabels(area, found, taken) {
  const { context, width, height, unit } = area;
  const texts = LABEL_TEXTS.find(({ from }) => width / unit >= from)?.texts ?? [];
  const size = 11 * unit;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const tall = ({ box: [, y1, , y2] }) => y2 - y1;
  for (const one of found.filter((one) => tall(one) >= MIN_LABELLED_HEIGHT * unit).sort((a, b) => tall(b) - tall(a))) {
    for (const textOf of texts) {
      const text = textOf(one);
      const label = labelOf(context, text, size, unit);
      const places = placesAround(one.box, label, Math.round(2 * unit));
      if (isLarge(one.box, width, height)) places.push([one.box[0], one.box[1]]);
      const place = firstFree(area, places, label, taken);
      if (!place) continue;
      taken.push(place);
      drawText(context, text, place, colourOf(one.label), unit);
      break;
    }
  }
}

function drawText(context, text, [x1, y1, x2, y2], colour, unit) {
  context.fillStyle = LABEL_BACK;
  context.fillRect(x1, y1, x2 - x1, y2 - y1);
  context.fillStyle = colour;
  context.fillText(text, x1 + 4 * unit, (y1 + y2) / 2 + unit * 0.5);
}

/** Widths of texts by font and text: the same few are drawn again and again. @type {Map<string, number>} */
const widths = new Map();
const MAX_WIDTHS = 2000;

/** Width and height of a label, in whole pixels of the canvas. */
const labelOf = (context, text, size, unit) => ({
  width: Math.ceil(widthOf(context, text) + 8 * unit),
  height: Math.ceil(size + 4 * unit),
});

function widthOf(context, text) {
  const key = `${context.font} ${text}`;
  let width = widths.get(key);
  if (width === undefined) {
    if (widths.size >= MAX_WIDTHS) widths.clear();
    widths.set(key, (width = context.measureText(text).width));
  }
  return width;
}

/** Where a label may lie around a box, the best first: above, below, beside; x and y of its upper left corner. */
function placesAround([x1, y1, x2, y2], { width, height }, gap) {
  const [above, below, left, right] = [y1 - height - gap, y2 + gap, x1 - width - gap, x2 + gap];
  const middle = (x1 + x2 - width) >> 1;
  return [
    [x1, above], [x2 - width, above], [middle, above], [x1, below], [x2 - width, below], [middle, below],
    [right, y1], [left, y1], [right, y2 - height], [left, y2 - height],
  ];
}

/** The first place within the picture where a label covers no object and nothing that is taken. */
function firstFree(area, places, label, taken) {
  for (const [x, y] of places) {
    if (x < 0 || y < 0 || x + label.width > area.width || y + label.height > area.height) continue;
    const place = [x, y, x + label.width, y + label.height];
    if (!taken.some((other) => overlap(place, other)) && !area.obstacles.some((box) => overlap(place, box))) return place;
  }
  return undefined;
}

/** Whether two boxes (x1, y1, x2, y2) have a point in common. */
const overlap = (a, b) => a[0] < b[2] && b[0] < a[2] && a[1] < b[3] && b[1] < a[3];

function drawGeometry({ context, width, height, unit }, geometry) {
  const place = ([x, y]) => [x * width, y * height];
  context.save();
  for (const mask of geometry.masks) {
    trace(context, mask.points.map(place), true);
    context.fillStyle = "rgb(0 0 0 / .6)";
    context.fill();
  }
  for (const zone of geometry.zones) {
    trace(context, zone.points.map(place), true);
    context.fillStyle = "rgb(255 216 77 / .12)";
    context.fill();
    strokeShape(context, ZONE_COLOUR, unit, [8 * unit, 5 * unit]);
  }
  for (const line of geometry.lines) {
    const points = line.points.map(place);
    trace(context, points, false);
    strokeShape(context, LINE_COLOUR, unit, []);
    drawInside(context, points, unit);
  }
  context.restore();
}

/** Writes the names of zones and lines at their corners, where they cover no object if that is possible. @returns what is taken */
function drawNames(area, geometry) {
  const { context, width, height, unit } = area;
  const size = 12 * unit;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  for (const [shapes, colour] of [[geometry.zones, ZONE_COLOUR], [geometry.lines, LINE_COLOUR]]) {
    for (const { name, points } of shapes) {
      const label = labelOf(context, name, size, unit);
      const corners = points.map(([x, y]) => [Math.round(x * width), Math.round(y * height)]);
      const places = corners.flatMap((corner) => placesAround([...corner, ...corner], label, Math.round(3 * unit)));
      const place = firstFree(area, places, label, taken) ?? within(places[0], label, width, height);
      taken.push(place);
      drawText(context, name, place, colour, unit);
    }
  }
  return taken;
}

/** A place moved into the picture. */
function within([x, y], label, width, height) {
  const [left, top] = [Math.max(0, Math.min(x, width - label.width)), Math.max(0, Math.min(y, height - label.height))];
  return [left, top, left + label.width, top + label.height];
}

function trace(context, points, closed) {
  context.beginPath();
  points.forEach(([x, y], number) => (number ? context.lineTo(x, y) : context.moveTo(x, y)));
  if (closed) context.closePath();
}

function strokeShape(context, colour, unit, dash) {
  context.setLineDash(dash);
  context.strokeStyle = colour;
  context.lineWidth = 2 * unit;
  context.stroke();
  context.setLineDash([]);
}

/** An arrow from the middle of a line to its right: that way counts as "in". */
function drawInside(context, [[x1, y1], [x2, y2]], unit) {
  const length = Math.hypot(x2 - x1, y2 - y1) || 1;
  const [ax, ay] = [(x2 - x1) / length, (y2 - y1) / length];
  const [nx, ny] = [-ay, ax];
  const [mx, my] = [(x1 + x2) / 2, (y1 + y2) / 2];
  trace(context, [
    [mx - ax * 7 * unit, my - ay * 7 * unit],
    [mx + nx * 14 * unit, my + ny * 14 * unit],
    [mx + ax * 7 * unit, my + ay * 7 * unit],
  ], true);
  context.fillStyle = LINE_COLOUR;
  context.fill();
}

/**
 * Draws lines into an SVG of 100 by 100, from the left edge (the oldest) to the right.
 * @param {SVGElement} svg
 * @param {{kind: string, values: (number | null)[]}[]} series
 * @param {number} slots how many values fill the width
 * @returns {number} the value at the upper edge
 */
function drawLines(svg, series, slots) {
  const top = niceTop(1.1 * Math.max(0, ...series.flatMap(({ values }) => values.map((value) => value ?? 0))));
  series.forEach(({ kind, values }, number) => {
    const points = values
      .map((value, at) => (value === null ? "" : `${pointAt(at + slots - values.length, value)}`))
      .filter(Boolean);
    const line = svg.children[number] ?? svg.appendChild(makeSvg("polyline", { class: kind }));
    setAttribute(line, "points", points.join(" "));
  });
  function pointAt(at, value) {
    return `${((at / (slots - 1)) * 100).toFixed(1)},${(97 - (Math.max(value, 0) / top) * 92).toFixed(1)}`;
  }
  return top;
}

/** A round number at or above a value. @param {number} value */
function niceTop(value) {
  if (value <= 0) return 1;
  const power = 10 ** Math.floor(Math.log10(value));
  return [1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10].map((step) => step * power).find((step) => step >= value * 0.999) ?? value;
}

/** @returns {SVGElement} */
const makeSpark = () =>
  makeSvg("svg", { class: "spark", viewBox: "0 0 100 100", preserveAspectRatio: "none", "aria-hidden": "true" });
