/* The clock of the server by ours: how old a picture is counts from when it was taken, however long its way here was. */

const MAX_CROSSINGS = 60;

/** For each of the last answers, what must at least be added to the server's clock to get ours. @type {number[]} */
let differences = [];

/**
 * Notes an answer: it was made after the question was sent and had waited for news. The largest difference is that of
 * the shortest way, and what is shown is rather taken to be older than younger.
 * @param {{clock: number, waited_seconds: number}} head by the server's clock, in seconds
 * @param {number} sentAt by the clock of this page, in milliseconds
 */
function noteCrossing({ clock, waited_seconds: waited }, sentAt) {
  differences = [...differences, sentAt + (waited - clock) * 1000].slice(-MAX_CROSSINGS);
}

/** Another server has another clock. */
const forgetCrossings = () => (differences = []);

/** A time of the server by the clock of this page, in milliseconds. @param {number} seconds by the server's clock */
const oursOf = (seconds) => seconds * 1000 + Math.max(...differences);
