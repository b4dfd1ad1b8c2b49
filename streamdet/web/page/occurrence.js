/* An object or an alert: in words, as a card of the list, and in its dialog with picture, path and clip. */

const END_REASONS = {
  lost: "no longer seen",
  stream_down: "its stream went down",
  removed: "its stream was removed or paused",
  reload: "the tracking of its stream was changed",
  stopping: "the daemon stopped",
  restart: "the daemon was killed",
  internal_error: "an error in the daemon",
};
const CLIP_RETRY_MILLISECONDS = 3000;
const CLIP_TRIES = 20;

/** @param {any} item @returns {string} */
const titleOf = (item) => item.rule ?? item.label ?? "object";

/** When it counts in the list: an object when it ended, an alert when it was raised. @param {any} item */
const timeOf = (item) => (item.rule === null ? item.ended_at : item.began_at);

/** @param {any} item */
const secondsOf = (item) => Math.max(0, (item.ended_at ?? serverNow()) - item.began_at);

/** Date and time of day; of today only the latter. @param {number} at Unix time in seconds */
function moment(at) {
  const date = new Date(at * 1000);
  const isToday = date.toDateString() === new Date(serverNow() * 1000).toDateString();
  const day = isToday ? "" : `${date.toLocaleDateString([], { day: "numeric", month: "short" })}, `;
  return `${day}${clock(at)}`;
}

/** @param {any} item */
function standing(item) {
  if (item.rule !== null) return item.ended_at === null ? "Still raised" : "Over";
  const reason = item.event.reason;
  return reason ? `Ended: ${END_REASONS[reason] ?? reason}` : "Ended";
}

/** Why there is no picture, in a sentence. @param {any} item */
function noPicture(item) {
  if (item.event.picture) return "Its picture is not kept any longer, or cannot be fetched now.";
  return item.rule !== null ? "No picture: its rule asks for none, or none may be shown." : "No picture was kept of it.";
}

/** Where something is kept, in a cluster with the node that keeps it. */
function keptAddress(what, id, node, query = {}) {
  const asked = new URLSearchParams({ ...query, ...(node ? { node } : {}) }).toString();
  return `/api/${what}/${encodeURIComponent(id)}${asked && `?${asked}`}`;
}

/** @param {any} event that names a picture @param {boolean} small */
function pictureAddress({ node, picture: { picture_id: id, box } }, small) {
  const around = small && box ? { box: box.map((side) => Math.max(0, Math.round(side))).join(",") } : {};
  return keptAddress("pictures", id, node, small ? { size: "small", ...around } : {});
}

/** A picture, and calm words where there is none. @param {Element} place @param {any} item @param {boolean} small */
function showPictureOf(place, item, small) {
  const picture = item.event.picture;
  const empty = (text) => place.replaceChildren(make("p", { class: "shot-empty", text }));
  if (!picture) return empty(noPicture(item));
  const image = make("img", {
    src: pictureAddress(item.event, small), alt: small ? "" : `${titleOf(item)} on ${item.stream}`,
    loading: small ? "lazy" : false, decoding: "async",
  });
  image.addEventListener("error", () => empty(noPicture(item)));
  place.replaceChildren(image);
}

/** @param {any} item @param {(item: any) => void} mark @returns {any} */
function makeCard(item, mark) {
  const shot = make("div", { class: "shot" });
  showPictureOf(shot, item, true);
  const link = make("a", { href: "#/" }, shot, make("strong", { class: "occurrence-name" }), make("span", { class: "occurrence-stream" }), make("span", { class: "occurrence-time" }), make("span", { class: "occurrence-more" }));
  const button = make("button", { class: "button occurrence-mark", type: "button", title: "Reviewed" }, makeTick());
  button.addEventListener("click", () => mark(item));
  const card = make("li", { class: "occurrence", "data-kind": item.rule === null ? "object" : "alert" }, link, button);
  updateCard(card, item);
  return card;
}

const makeTick = () => makeSvg("svg", { viewBox: "0 0 16 16", "aria-hidden": "true" }, makeSvg("path", { d: "M3 8.5l3.2 3.2L13 4.8" }));

/** @param {any} card @param {any} item */
function updateCard(card, item) {
  const [name, stream, time, more] = [...card.firstChild.children].slice(1);
  setText(name, titleOf(item));
  setText(stream, item.stream);
  const took = item.ended_at === null && item.rule !== null ? " · still raised" : lasting(secondsOf(item), " · ");
  setText(time, `${moment(timeOf(item))}${took}`);
  const parts = [item.rule !== null ? item.label : "", ...item.zones, item.event.clip_id ? "clip" : ""].filter(Boolean);
  setText(more, parts.join(" · "));
  card.classList.toggle("raised", item.rule !== null && item.ended_at === null);
  card.classList.toggle("reviewed", item.reviewed);
  const button = card.lastChild;
  setAttribute(button, "aria-pressed", String(item.reviewed));
  setAttribute(button, "aria-label", `${titleOf(item)} on ${item.stream} at ${moment(timeOf(item))}: reviewed`);
}

/**
 * Where a point of the frame is in the picture, which may be a part of it.
 * @returns {{width: number, height: number, x: (part: number) => number, y: (part: number) => number}}
 */
function viewOf(item) {
  const { frame, picture } = item.event;
  const inFrame = item.rule === null ? item.event.object.best.box : item.event.alert.box;
  if (!picture) return { width: frame.width, height: frame.height, x: (part) => part * frame.width, y: (part) => part * frame.height };
  const { width, height, box } = picture;
  if (!box || !inFrame) return { width, height, x: (part) => part * width, y: (part) => part * height };
  const scale = (box[2] - box[0]) / Math.max(inFrame[2] - inFrame[0], 1);
  return {
    width, height,
    x: (part) => (part * frame.width - inFrame[0]) * scale + box[0],
    y: (part) => (part * frame.height - inFrame[1]) * scale + box[1],
  };
}

/**
 * Draws the path, the box, zones and lines over a picture.
 * @param {any} item @param {any} geometry of its stream, as it is now @param {number[][]} path
 * @param {{path: boolean, box: boolean, zones: boolean}} options
 */
function makeOverlay(item, geometry, path, options) {
  const area = viewOf(item);
  const svg = makeSvg("svg", { viewBox: `0 0 ${area.width} ${area.height}`, class: "overlay", "aria-hidden": "true" });
  const size = Math.max(area.width, area.height) / 40;
  const points = (list) => list.map(([x, y]) => `${area.x(x).toFixed(1)},${area.y(y).toFixed(1)}`).join(" ");
  /** @type {{x: number, y: number, end: number}[]} */
  const names = [];
  // At its first point, in the picture and clear of other names; of a shape that is nowhere in the picture there is none.
  const name = (text, corners, kind) => {
    const [xs, ys] = [corners.map(([x]) => area.x(x)), corners.map(([, y]) => area.y(y))];
    if (Math.max(...xs) < 0 || Math.min(...xs) > area.width || Math.max(...ys) < 0 || Math.min(...ys) > area.height) return;
    const x = Math.max(Math.min(xs[0], area.width - size * 0.65 * text.length), 2);
    let y = Math.min(Math.max(ys[0] - size / 3, size), area.height - 2);
    const end = x + size * 0.65 * text.length;
    for (const other of names) if (Math.abs(other.y - y) < size && other.x < end && other.end > x) y = other.y + size * 1.1;
    names.push({ x, y, end });
    svg.append(makeSvg("text", { class: kind, x, y, "font-size": size, text }));
  };
  if (options.zones && geometry) {
    for (const zone of geometry.zones) svg.append(makeSvg("polygon", { class: "zone", points: points(zone.points) }));
    for (const line of geometry.lines) svg.append(makeSvg("polyline", { class: "line", points: points(line.points) }));
    for (const zone of geometry.zones) name(zone.name, zone.points, "zone");
    for (const line of geometry.lines) name(line.name, line.points, "line");
  }
  const box = item.event.picture?.box;
  if (options.box && box) svg.append(makeSvg("rect", { class: "box", x: box[0], y: box[1], width: box[2] - box[0], height: box[3] - box[1] }));
  if (options.path && path.length > 1) {
    svg.append(makeSvg("polyline", { class: "path under", points: points(path) }), makeSvg("polyline", { class: "path", points: points(path) }));
    const [first, last] = [path[0], path[path.length - 1]];
    svg.append(makeSvg("circle", { class: "path-begin", cx: area.x(first[0]), cy: area.y(first[1]), r: size / 3 }));
    svg.append(makeSvg("circle", { class: "path-end", cx: area.x(last[0]), cy: area.y(last[1]), r: size / 3 }));
  }
  return svg;
}

/** Shows a clip; one that has just been asked for comes some seconds later. @param {any} place @param {any} item */
function showClip(place, item) {
  const id = item.event.clip_id;
  removeClip(place);
  if (!id) return;
  const words = make("p", { class: "hint", role: "status" });
  const source = keptAddress("clips", id, item.event.node);
  const player = make("video", { controls: true, preload: "metadata", playsinline: true, src: source, "aria-label": `Clip of ${titleOf(item)} on ${item.stream}` });
  const isNew = serverNow() - item.began_at < 120;
  let tries = 0;
  player.addEventListener("loadedmetadata", () => setText(words, ""));
  player.addEventListener("error", async () => {
    let status = 0;
    try {
      status = (await fetch(source, { method: "HEAD" })).status;
    } catch {
      // the server is away; the notice says so
    }
    if (!player.isConnected) return;
    if (status === 200) return setText(words, "This browser cannot play the clip (H.265 perhaps). Right-click it to save it as a file.");
    if (status !== 404) return setText(words, "The clip cannot be fetched now.");
    if (!isNew || ++tries > CLIP_TRIES) return place.replaceChildren(make("p", { class: "hint", text: "Its clip is not kept any longer." }));
    setText(words, "The clip is there some seconds after it ends …");
    await sleep(CLIP_RETRY_MILLISECONDS);
    if (player.isConnected) player.load();
  });
  place.replaceChildren(player, words);
}

/** Ends the download, too: a player that is only removed may keep its connection for long. @param {Element} place */
function removeClip(place) {
  const player = place.querySelector("video");
  place.replaceChildren();
  player?.removeAttribute("src");
  player?.load();
}

/** @param {any} item @returns {[string, string][]} */
function factsOf(item) {
  const { event } = item;
  const facts = [
    ["Stream", item.stream],
    [item.rule === null ? "First seen" : "Raised", moment(item.began_at)],
    [item.rule === null ? "Last seen" : "Cleared", item.ended_at === null ? "still raised" : moment(item.ended_at)],
  ];
  const took = lasting(secondsOf(item));
  if (took) facts.push(["Duration", took]);
  if (item.label) facts.push(["Label", item.label]);
  if (item.rule === null) {
    facts.push(["Best score", percent(event.object.score)], ["Track", `#${event.object.track_id}`]);
    for (const visit of event.object.zones) facts.push([`In ${visit.zone}`, `for ${duration(visit.seconds)}`]);
  } else {
    if (event.alert.zone) facts.push(["Zone", event.alert.zone]);
    if (event.alert.line) facts.push(["Line", `${event.alert.line}, ${event.alert.direction}`]);
    if (event.alert.count !== undefined) facts.push(["Objects at once", String(event.alert.count)]);
  }
  if (item.rule === null) facts.push(["State", standing(item)]);
  return /** @type {[string, string][]} */ (facts);
}
