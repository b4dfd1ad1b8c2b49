/* What the page may change of the daemon, and how it asks for it. */

/** Who looks at the page, and what the server lets them do. */
const account = {
  /** Whether the server says how streams are configured. */
  reads: false,
  mayChange: false,
  /** Why nothing can be changed here. */
  whyNot: "This page cannot change the daemon.",
};

const readAccount = () => Promise.resolve();

/** How a stream is configured; null where the server does not say. @param {string} _stream @returns {Promise<any>} */
const getSettings = (_stream) => Promise.resolve(null);

/** @param {any} _change @returns {Promise<{problem: string, problems: string[], isConflict: boolean, settings?: any, version?: string}>} */
const applyChange = (_change) => Promise.resolve({ problem: account.whyNot, problems: [], isConflict: false });

/** Copies a text, and says so beside the button. @param {string} text @param {Element} words */
async function copyText(text, words) {
  try {
    await navigator.clipboard.writeText(text);
    setText(words, "Copied.");
  } catch {
    setText(words, "This browser does not allow it here: select the text and copy it.");
  }
}
