/* Parts of the configuration file as text. */

/** A string as TOML: text of any kind, also quotes, control characters and halves of surrogate pairs. @param {string} text */
function tomlText(text) {
  const sound = text.replace(/[\ud800-\udbff](?![\udc00-\udfff])|(?<![\ud800-\udbff])[\udc00-\udfff]/g, "\ufffd");
  const escaped = sound.replace(/[\\"\u0000-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069]/g, (character) =>
    character === "\\" || character === '"' ? `\\${character}` : `\\u${character.charCodeAt(0).toString(16).padStart(4, "0")}`);
  return `"${escaped.replaceAll("${", () => "$${")}"`; // ${NAME} would be a variable
}

/** @param {unknown} value @returns {string} */
function tomlValue(value) {
  if (Array.isArray(value)) return `[${value.map(tomlValue).join(", ")}]`;
  return typeof value === "string" ? tomlText(value) : String(value);
}

const tomlPoint = (point) => `[${point.map((part) => (Number.isInteger(part) ? part.toFixed(1) : String(part))).join(", ")}]`;

/** What each key of a shape is when it is left out. */
const SHAPE_DEFAULTS = { labels: [], min_size: 0, max_size: 1, anchor: "bottom", min_score: 0, dwell_seconds: [], loiter_seconds: null };

/** The keys of a shape that are not at their defaults, as the configuration has them. @param {string} kind @param {any} shape */
function keysOf(kind, shape) {
  const keys = { name: shape.name, [kind === "lines" ? "points" : "polygon"]: shape.points };
  for (const [key, value] of Object.entries(SHAPE_DEFAULTS)) {
    if (shape[key] !== undefined && JSON.stringify(shape[key]) !== JSON.stringify(value)) keys[key] = shape[key];
  }
  return keys;
}

/**
 * The zones, lines and masks of a stream, to be put into its `[[streams]]`.
 * @param {string} stream @param {Record<string, any[]>} shapes
 */
function tomlOfShapes(stream, shapes) {
  const tables = Object.entries(shapes).flatMap(([kind, all]) => all.map((shape) => tomlTable(`streams.${kind}`, keysOf(kind, shape))));
  const head = `# Zones, lines and masks of the stream ${tomlText(stream)}: put this below its keys, instead of those that it has.`;
  return [head, ...(tables.length ? tables : ["# It has none."])].join("\n\n") + "\n";
}

function tomlTable(name, keys) {
  const lines = Object.entries(keys).map(([key, value]) => {
    const isPoints = key === "polygon" || key === "points";
    return `${key} = ${isPoints ? `[${value.map(tomlPoint).join(", ")}]` : tomlValue(value)}`;
  });
  return [`[[${name}]]`, ...lines].join("\n");
}

/** A rule. @param {Record<string, unknown>} keys */
const tomlOfRule = (keys) => `${tomlTable("rules", keys)}\n`;
