/* What belongs to a picture, on the wall and on a stream's own page: how old it is, why there is none, and the last seconds. */

/** Shows how old a picture is, when it is not live. @param {{picture: Element, age: Element, takenAt: number | null}} shown */
function showAge({ picture, age, takenAt }) {
  const seconds = takenAt === null ? 0 : secondsSince(takenAt);
  const old = seconds > STILL_LIVE_SECONDS;
  picture.classList.toggle("old", old);
  age.hidden = !old;
  if (old) setText(age, lastSeen(seconds));
}

/** Covers the picture of a stream that is not up with words about why. */
function showVeil(picture, veil, title, text, row) {
  const up = row.state === "up";
  veil.hidden = up && havePictures.has(row.name);
  picture.classList.toggle("stale", !up);
  setAttribute(picture, "data-state", isResting(row) ? "resting" : row.state);
  if (veil.hidden) return;
  if (up) setText(title, isLive(row) || row.takenAt === null ? "Waiting for a picture" : lastSeen(secondsSince(row.takenAt)));
  else setText(title, isLive(row) ? notUpFor(row) : `${whatNow(row)} when last heard of`);
  setText(text, up ? "" : whyNot(row));
}

const fpsSeries = (history) => [
  { kind: "in", values: history.map(([fpsIn]) => fpsIn) },
  { kind: "out", values: history.map(([, fpsOut]) => fpsOut) },
];
const latencySeries = (history) => [{ kind: "latency", values: history.map(([, , latency]) => latency) }];
