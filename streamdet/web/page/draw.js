/* Pictures with what was found in them, and small diagrams. */

/** Bright on any picture, dark text readable on each. */
const PALETTE = ["#4ade80", "#60a5fa", "#fbbf24", "#f472b6", "#a78bfa", "#22d3ee", "#fb923c", "#e5e7eb"];
const KNOWN_LABELS = ["person", "bicycle", "car", "motorcycle", "bus", "truck"];
const ZONE_COLOUR = "#ffd84d";
const LINE_COLOUR = "#ff7ad9";
const INK = "#07110b";
const MAX_CANVAS_PIXELS = 1920;

/** The same colour for a label everywhere. @param {string} label */
function colourOf(label) {
  const known = KNOWN_LABELS.indexOf(label);
  if (known >= 0) return PALETTE[known];
  let sum = 0;
  for (const character of label) sum = (sum * 31 + character.codePointAt(0)) % 65521;
  return PALETTE[sum % PALETTE.length];
}

/**
 * Draws a picture and what was found in that very picture.
 * @param {HTMLCanvasElement} canvas as wide as it is shown afterwards
 * @param {ImageBitmap} bitmap
 * @param {{frame: {seq: number, width: number, height: number}, detections: any[]}} shot boxes in pixels of the frame
 * @param {{boxes: boolean, labels: boolean, crowd: boolean, geometry: any}} options crowd: smaller labels
 */
function drawShot(canvas, bitmap, shot, options) {
  const shown = canvas.clientWidth * Math.min(devicePixelRatio, 2);
  const width = Math.round(Math.min(MAX_CANVAS_PIXELS, Math.max(shown, 160)));
  const height = Math.round((width * shot.frame.height) / shot.frame.width);
  if (canvas.width !== width || canvas.height !== height) Object.assign(canvas, { width, height });
  const context = canvas.getContext("2d", { alpha: false });
  context.drawImage(bitmap, 0, 0, width, height);
  const unit = Math.max(1, width / Math.max(canvas.clientWidth, 1));
  if (options.geometry) drawGeometry(context, options.geometry, width, height, unit);
  const scale = width / shot.frame.width;
  if (options.boxes) for (const found of shot.detections) drawBox(context, found, scale, unit);
  if (options.labels) drawLabels(context, shot.detections, scale, unit, { width, height }, options.crowd);
  canvas.dataset.frame = String(shot.frame.seq);
}

function drawBox(context, found, scale, unit) {
  const [x1, y1, x2, y2] = found.box.map((side) => side * scale);
  context.lineJoin = "round";
  for (const [style, width] of [["rgb(0 0 0 / .55)", 4], [colourOf(found.label), 2]]) {
    context.strokeStyle = style;
    context.lineWidth = Number(width) * unit;
    context.strokeRect(x1, y1, x2 - x1, y2 - y1);
  }
}

/** The most certain first; one that would hide another moves, or stays away when there is no room around its box. */
function drawLabels(context, detections, scale, unit, canvas, crowd) {
  const size = (crowd ? 10 : 11) * unit;
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textBaseline = "middle";
  const taken = [];
  for (const found of detections) {
    const track = found.track_id === null ? "" : ` #${found.track_id}`;
    const text = `${found.label} ${percent(found.score)}${track}`;
    const label = { width: context.measureText(text).width + 8 * unit, height: size + 5 * unit };
    const places = placesFor(found.box.map((side) => side * scale), label, canvas);
    const place = places.find((candidate) => !taken.some((other) => overlap(candidate, other)));
    if (!place) continue;
    taken.push(place);
    context.fillStyle = colourOf(found.label);
    context.fillRect(place.x, place.y, place.width, place.height);
    context.fillStyle = INK;
    context.fillText(text, place.x + 4 * unit, place.y + place.height / 2 + unit * 0.5);
  }
}

/** Above a box, below it, beside it, at its upper edge within: whatever lies in the picture, the best first. */
function placesFor([x1, y1, x2, y2], { width, height }, canvas) {
  const lefts = [x1, x2 - width].map((x) => Math.max(0, Math.min(x, canvas.width - width)));
  const places = [
    [lefts[0], y1 - height], [lefts[1], y1 - height], [lefts[0], y2], [lefts[1], y2], [x2, y1], [x1 - width, y1], [lefts[0], y1],
  ];
  return places
    .map(([x, y]) => ({ x, y, width, height }))
    .filter(({ x, y }) => x >= 0 && x + width <= canvas.width && y >= 0 && y + height <= canvas.height);
}

const overlap = (a, b) => a.x < b.x + b.width && b.x < a.x + a.width && a.y < b.y + b.height && b.y < a.y + a.height;

function drawGeometry(context, geometry, width, height, unit) {
  const place = ([x, y]) => [x * width, y * height];
  context.save();
  for (const mask of geometry.masks) {
    trace(context, mask.points.map(place), true);
    context.fillStyle = "rgb(0 0 0 / .6)";
    context.fill();
  }
  for (const zone of geometry.zones) {
    const points = zone.points.map(place);
    trace(context, points, true);
    context.fillStyle = "rgb(255 216 77 / .12)";
    context.fill();
    strokeShape(context, ZONE_COLOUR, unit, [8 * unit, 5 * unit]);
    nameShape(context, zone.name, points[0], ZONE_COLOUR, unit, width);
  }
  for (const line of geometry.lines) {
    const points = line.points.map(place);
    trace(context, points, false);
    strokeShape(context, LINE_COLOUR, unit, []);
    drawInside(context, points, unit);
    nameShape(context, line.name, points[0], LINE_COLOUR, unit, width);
  }
  context.restore();
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

function nameShape(context, name, [x, y], colour, unit, canvasWidth) {
  const size = 12 * unit;
  context.font = `600 ${size}px system-ui, sans-serif`;
  const left = Math.min(x + 4 * unit, canvasWidth - context.measureText(name).width - 4 * unit);
  const top = Math.max(y - 6 * unit, size);
  context.textBaseline = "alphabetic";
  context.lineWidth = 3 * unit;
  context.strokeStyle = "rgb(0 0 0 / .8)";
  context.strokeText(name, left, top);
  context.fillStyle = colour;
  context.fillText(name, left, top);
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
