/* The nodes of a cluster: what the head says of them, whether the page hears them, and the last moves of streams. */

const NODE_STATES = { up: ["Up", "up"], draining: ["Draining", "connecting"], lost: ["Lost", "down"] };

/** @param {number} count */
const countOfStreams = (count) => (count === 1 ? "1 stream" : `${count} streams`);

function showNodes() {
  const { cluster } = heard;
  byId("nodes-empty").hidden = Boolean(cluster?.nodes.length);
  if (!cluster) {
    setText(byId("nodes-empty"), heard.endpoint ? "This page shows one daemon, and no cluster." : "Loading the nodes …");
    return;
  }
  setText(byId("nodes-empty"), "No node has joined yet.");
  const unplaced = [...rows.values()].filter((row) => row.state === "unplaced").length;
  const asOf = cluster.is_fresh || cluster.answered_seconds === null ? "" : ` ${duration(cluster.answered_seconds)} ago`;
  const left = unplaced ? `; ${countOfStreams(unplaced)} unplaced` : "";
  setText(byId("nodes-head"), `As the head at ${cluster.head} has said${asOf}${left}.`);
  refill(byId("nodes"), cluster.nodes.map(makeNode));
  byId("nodes-problems-card").hidden = !cluster.problems.length;
  refill(byId("nodes-problems"), cluster.problems.map((problem) => make("li", { text: sentenceOf(problem) })));
  setText(byId("moves-hint"), cluster.moves.length ? "" : "No stream has moved since the page's server was started.");
  const head = ["Time", "Stream", "From", "To", "Without events"].map((text) => make("th", { scope: "col", text }));
  const moves = cluster.moves.map(makeMove);
  refill(byId("moves"), moves.length ? [make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...moves)] : []);
}

/** Replaces what an element holds, where that has changed: a reader or a selection in it stays. */
function refill(element, children) {
  const fresh = make("div", {}, ...children);
  if (element.innerHTML !== fresh.innerHTML) element.replaceChildren(...fresh.childNodes);
}

function makeNode(node) {
  const [word, colour] = NODE_STATES[node.state] ?? [node.state, ""];
  const load = `${perSecond(node.load_fps)} of ${perSecond(node.capacity_fps)} fps`;
  const card = make(
    "li",
    { class: "card node" },
    make("h2", {}, make("span", { text: node.name }), make("span", { class: "pill", "data-state": colour, text: word })),
    make("p", { text: `${countOfStreams(node.streams)}, load ${load}` }),
    make("meter", { min: 0, max: Math.max(node.capacity_fps, 0.001), value: node.load_fps, "aria-label": `Load of ${node.name}: ${load}` }),
    make("p", { text: `streamdet ${node.version}${node.state === "lost" ? `, reported ${duration(node.reported_seconds)} ago` : ""}` }),
  );
  if (node.away_seconds !== null) card.append(make("p", { class: "problem", text: `No connection from this page for ${duration(node.away_seconds)}.` }));
  for (const why of node.refused) card.append(make("p", { class: "problem", text: `Its daemon refuses: ${why}` }));
  return card;
}

function makeMove({ at, stream, before, node, gap_seconds: seconds }) {
  return make(
    "tr",
    {},
    make("td", {}, make("time", { datetime: new Date(at * 1000).toISOString(), text: clock(at) })),
    make("td", {}, make("a", { href: addressOf("stream", stream), text: stream })),
    make("td", { text: before }),
    make("td", { text: node }),
    make("td", { text: duration(seconds) }),
  );
}

addView("nodes", {
  open() {
    listOnly("");
    showNodes();
  },
  title: () => "Nodes",
  update: showNodes,
  refresh: showNodes,
});
