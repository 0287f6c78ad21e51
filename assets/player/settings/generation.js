// What is generated: tokens, batch, mode, repeats, sampling.

import { h, partsOf, put } from "../core/dom.js";
import { TEXT } from "../text.js";

const WORDS = TEXT.generationFields;

/** @param {string} id @param {keyof typeof WORDS} name @param {string} input */
const field = (id, name, input) => `<div class="avl-field"><label for="avl-${id}">${WORDS[name][0]}</label>${input}</div>`;

export const GENERATION = `<div class="avl-panel avl-generation">
  <div class="avl-param">
    <label for="avl-tokens">${TEXT.newTokens}</label>
    <input type="range" class="avl-range" id="avl-tokens" data-id="tokens" min="1" max="256" step="1">
    <output data-id="tokensOut"></output><span></span>
  </div>
  <details class="avl-more">
    <summary>${TEXT.generation}</summary>
    ${field("batch", "batch", `<input type="number" id="avl-batch" data-id="batch" min="1" max="256" step="1">`)}
    <p class="avl-note" data-id="fits" hidden></p>
    ${field("mode", "mode", `<select class="avl-select" id="avl-mode" data-id="mode"></select>`)}
    ${field("repeats", "repeats", `<input type="number" id="avl-repeats" data-id="repeats" min="1" max="20" step="1">`)}
    ${field("scores", "scores", `<input type="checkbox" id="avl-scores" data-id="scores">`)}
    ${field("agreement", "agreement", `<input type="checkbox" id="avl-agreement" data-id="agreement">`)}
    ${field("temperature", "temperature", `<input type="number" id="avl-temperature" data-id="temperature" min="0" max="2" step="0.1">`)}
    ${field("topp", "topp", `<input type="number" id="avl-topp" data-id="topp" min="0.01" max="1" step="0.01">`)}
    ${field("seed", "seed", `<input type="number" id="avl-seed" data-id="seed" min="0" max="2147483647" step="1" placeholder="${TEXT.random}">`)}
  </details>
  <p class="avl-note avl-problem" id="avl-problem" data-id="problem" role="status" hidden></p>
</div>`;

/**
 * @param {any} root
 * @param {() => any} settings
 * @param {(changes: any) => void} change
 * @param {{ max_tokens: number }} about
 */
export function generationFields(root, settings, change, about) {
  const $ = partsOf(root);
  for (const [name, [, title]] of Object.entries(WORDS)) $[name].title = title;
  $.mode.append(...Object.entries(TEXT.modesOfRuns).map(([value, text]) => h("option", { value }, text)));
  $.tokens.max = String(about.max_tokens);

  /** @param {any} node @param {string} key @param {(node: any) => any} read undefined: no valid value */
  const connect = (node, key, read) => {
    node.addEventListener(node.tagName === "SELECT" || node.type === "checkbox" ? "change" : "input", () => {
      const value = read(node), { rangeUnderflow, rangeOverflow, stepMismatch } = node.validity;
      // the sentence below the fields says what is wrong, this says where
      const wrong = value === undefined || rangeUnderflow || rangeOverflow || (node.step === "1" && stepMismatch);
      for (const [name, text] of [["aria-invalid", "true"], ["aria-describedby", "avl-problem"]]) if (wrong) node.setAttribute(name, text); else node.removeAttribute(name);
      if (value === undefined) return;
      change({ [key]: value });
      if (key === "max_new_tokens") put($.tokensOut, `≤ ${value}`);
    });
  };
  // what is not a number stays as it was; what is out of range is said by the server in one sentence
  const numeric = (/** @type {any} */ node) => (node.value.trim() === "" || !isFinite(Number(node.value)) ? undefined : Number(node.value));
  const checked = (/** @type {any} */ node) => node.checked;
  connect($.tokens, "max_new_tokens", numeric);
  connect($.batch, "batch", numeric);
  connect($.mode, "mode", (node) => node.value);
  connect($.repeats, "repeats", numeric);
  connect($.scores, "scores", checked);
  connect($.agreement, "agreement", checked);
  connect($.temperature, "temperature", numeric);
  connect($.topp, "top_p", numeric);
  connect($.seed, "seed", (node) => (node.value.trim() === "" ? null : numeric(node)));

  return {
    parts: $,
    modes: Object.keys(TEXT.modesOfRuns),
    draw() {
      const now = settings();
      $.tokens.value = now.max_new_tokens;
      put($.tokensOut, `≤ ${now.max_new_tokens}`);
      $.batch.value = now.batch;
      $.mode.value = now.mode;
      $.repeats.value = now.repeats;
      $.scores.checked = now.scores;
      $.agreement.checked = Boolean(now.agreement);
      $.temperature.value = now.temperature;
      $.topp.value = now.top_p;
      $.seed.value = now.seed === null ? "" : now.seed;
    },
  };
}
