const BROWSER = [
  "Blob", "CustomEvent", "DOMMatrix", "DataTransfer", "Event", "HTMLElement", "Image", "ImageData", "Intl", "IntersectionObserver", "MutationObserver", "Path2D", "ResizeObserver", "URL", "URLSearchParams",
  "addEventListener", "atob", "clearTimeout", "console", "document", "getComputedStyle", "history", "innerWidth", "localStorage", "location", "matchMedia", "navigator",
  "performance", "requestAnimationFrame", "sessionStorage", "setInterval", "clearInterval", "setTimeout", "window", "fetch",
];
const GRADIO = ["element", "props", "server", "trigger", "watch", "STYLE"];
const readonly = (names) => Object.fromEntries(names.map((name) => [name, "readonly"]));

export default [
  { ignores: ["node_modules/", "eslint.config.js"] },
  {
    files: ["**/*.js"],
    languageOptions: { ecmaVersion: 2023, sourceType: "module", globals: readonly(BROWSER) },
    rules: {
      "no-undef": "error", "no-unused-vars": "error", "prefer-const": "error", eqeqeq: "error", "no-var": "error", "no-shadow": "error",
      "no-implicit-globals": "error", "no-eval": "error", "no-implied-eval": "error", complexity: ["error", 28], "max-lines": ["error", 400],
      "max-len": ["error", { code: 240, ignoreStrings: true, ignoreTemplateLiterals: true, ignoreComments: true }],
      "no-restricted-properties": ["error", { property: "outerHTML" }, { property: "insertAdjacentHTML" }],
    },
  },
  { files: ["text.js"], rules: { "max-lines": "off" } }, // one file for all of it
  { files: ["player.js", "controls.js", "gallery.js", "header.js", "sweep.js"], languageOptions: { globals: readonly(GRADIO) } },
];
