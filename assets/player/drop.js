// Pictures that are dropped on the picture: the first becomes the picture, the others go to "More pictures". Gradio takes one, and none where
// there is a picture already: the browser would leave the page for the file.

const PICTURE = "#avl-picture input[type=file]";
const MORE = "#avl-more-pictures input[type=file]";
const CLEAR = "#avl-more-pictures button[aria-label=Clear]";
const WAIT = 15000; // ms, for a field of Gradio's that a click brings

/** @param {string} selector @param {() => void} open brings it @returns {Promise<HTMLInputElement | null>} */
async function field(selector, open) {
  const find = () => /** @type {HTMLInputElement | null} */ (document.querySelector(selector));
  if (!find()) open();
  for (let waited = 0; !find() && waited < WAIT; waited += 100) await new Promise((resolve) => setTimeout(resolve, 100));
  return find();
}

/** @param {string} selector */
function press(selector) {
  const button = /** @type {HTMLElement | null} */ (document.querySelector(selector));
  if (button) button.click();
}

/** @param {HTMLInputElement | null} input @param {File[]} files */
function hand(input, files) {
  if (!input || !files.length) return;
  const carrier = new DataTransfer();
  for (const file of files) carrier.items.add(file);
  input.files = carrier.files;
  input.dispatchEvent(new Event("change", { bubbles: true }));
}

/** @param {() => Promise<any>} answered resolves when the server has answered to a change of the pictures */
export function takeDrops(answered) {
  const ours = (/** @type {DragEvent} */ event) => Boolean(event.dataTransfer && event.dataTransfer.types.includes("Files") && /** @type {Element} */ (event.target).closest("#avl-picture"));
  document.addEventListener("dragover", (event) => { if (ours(event)) event.preventDefault(); }, true);
  document.addEventListener("drop", async (event) => {
    if (!ours(event)) return;
    event.preventDefault();
    event.stopImmediatePropagation();
    const [first, ...others] = [.../** @type {DataTransfer} */ (event.dataTransfer).files];
    if (!first) return;
    const input = await field(PICTURE, () => press("#avl-picture [data-testid=source-select] button"));
    const taken = answered();
    hand(input, [first]);
    if (!others.length) return;
    await taken; // the pictures are one choice: each change has to know of the one before
    if (document.querySelector(CLEAR)) {
      const emptied = answered();
      press(CLEAR);
      await emptied;
    }
    hand(await field(MORE, () => press("#avl-more > button")), others);
  }, true);
}
