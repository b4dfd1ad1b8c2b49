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

const NO_CLIP = {
  codec: "the video is neither H.264 nor H.265, which clips need",
  privacy: "a clip would show what blur or masks hide",
  no_packets: "nothing of the video was kept when it was raised",
  no_key_frame: "nothing of the video was kept that a clip can begin with when it was raised",
  too_large: "the video takes more than max_ring_bytes in [clips] of the daemon",
  error: "of an error in the daemon, which is in its log",
};
const CONTROLS_PIXELS = 80;
const TAP_MILLISECONDS = 200;
const CLIP_RETRY_MILLISECONDS = 1000;
/** From the last picture of a clip until it can be fetched, usually. */
const CLIP_WRITING_SECONDS = 1;
/** A clip that is encoded again takes longer. */
const CLIP_PATIENCE_SECONDS = 60;

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
  const took = item.ended_at === null && item.rule !== null ? " · still raised" : lasting(secondsOf(item), item.rule !== null ? " · raised for " : " · ");
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

/** Shows a clip, or says when it is ready or why there is none. @param {any} place @param {any} item */
async function showClip(place, item) {
  const { clip_id: id, clip_missing: missing, node } = item.event;
  removeClip(place);
  place.closest(".occurrence-body").classList.toggle("with-clip", Boolean(id));
  const phase = make("span", { role: "status" });
  const rest = make("span"); // counts down, which no one wants to hear
  const words = make("p", { class: "hint" }, phase, rest);
  if (!id && !missing) return;
  place.replaceChildren(words);
  if (!id) return setText(phase, `There is no clip: ${NO_CLIP[missing] ?? `the daemon gives the reason "${missing}"`}.`);
  const source = keptAddress("clips", id, node);
  if (!(await untilClip(source, item, phase, rest))) return;
  const player = make("video", { controls: true, preload: "metadata", playsinline: true, src: source, "aria-label": `Clip of ${titleOf(item)} on ${item.stream}` });
  playByTap(player);
  player.addEventListener("loadedmetadata", () => setText(phase, howShort(item, player.duration)));
  player.addEventListener("error", async () => {
    const status = await statusOf(source);
    if (status === 200) setText(phase, "This browser cannot play the clip (H.265 perhaps). Right-click it to save it as a file.");
    else setText(phase, "The clip cannot be fetched now.");
  });
  place.replaceChildren(player, words);
}

/** A tap on the picture plays it, also where the browser's own controls only appear then. @param {any} player */
function playByTap(player) {
  let wasPaused = false;
  player.addEventListener("pointerdown", () => (wasPaused = player.paused));
  player.addEventListener("pointerup", async (event) => {
    if (event.pointerType !== "touch" || !wasPaused || event.offsetY > player.clientHeight - CONTROLS_PIXELS) return;
    await sleep(TAP_MILLISECONDS); // where the controls play it, that is enough
    if (player.paused) player.play().catch(() => {});
  });
}

/**
 * Waits until a clip can be fetched; false where it cannot be, or no one looks any longer.
 * @param {string} source @param {any} item @param {any} phase @param {any} rest
 */
async function untilClip(source, item, phase, rest) {
  const readyAt = item.began_at + (item.event.clip_seconds?.[1] ?? 0) + CLIP_WRITING_SECONDS;
  for (;;) {
    const status = await statusOf(source);
    if (!phase.isConnected) return false;
    setText(rest, "");
    if (status === 200) return true;
    if (status !== 404) return setText(phase, "The clip cannot be fetched now."), false;
    if (serverNow() > readyAt + CLIP_PATIENCE_SECONDS) return setText(phase, "Its clip is not kept any longer."), false;
    setText(phase, serverNow() < readyAt ? "The clip is being recorded" : "The clip is being written …");
    for (let first = true; first || serverNow() < readyAt; first = false) {
      if (serverNow() < readyAt) setText(rest, `; it is ready in about ${duration(Math.max(1, readyAt - serverNow()))}.`);
      await sleep(CLIP_RETRY_MILLISECONDS);
      if (!phase.isConnected) return false;
    }
  }
}

/** @param {string} address @returns {Promise<number>} of the answer; 0 where there is none: the notice says why */
async function statusOf(address) {
  try {
    return (await fetch(address, { method: "HEAD" })).status;
  } catch {
    return 0;
  }
}

/** Whether a clip is shorter than its rule asks for, in words. @param {any} item @param {number} seconds */
function howShort(item, seconds) {
  const [before, after] = item.event.clip_seconds ?? [0, 0];
  if (seconds > before + after - 1) return "";
  return `The clip has ${duration(seconds)} of the ${duration(before + after)} that its rule asks for: video is kept from when the rule is in force, and while the stream is up.`;
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
  if (took) facts.push([item.rule === null ? "Duration" : "Raised for", took]);
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
