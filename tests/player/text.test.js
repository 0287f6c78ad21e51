// Every sentence is in one file, and every one of them is used.

import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { dirname, join } from "node:path";
import test from "node:test";
import { fileURLToPath } from "node:url";

import { TEXT } from "../../assets/player/text.js";

const FOLDER = join(dirname(fileURLToPath(import.meta.url)), "../../assets/player");
const files = readdirSync(FOLDER, { recursive: true }).filter((name) => name.endsWith(".js") && !name.includes("node_modules") && name !== "text.js" && name !== "eslint.config.js");
const source = Object.fromEntries(files.map((name) => [name, readFileSync(join(FOLDER, name), "utf-8")]));
const all = Object.values(source).join("\n");

test("no sentence is left over", () => {
  const unused = Object.keys(TEXT).filter((key) => !new RegExp(`TEXT\\.${key}\\b`).test(all));
  assert.deepEqual(unused, []);
});

test("no sentence is asked for that there is not", () => {
  const asked = new Set([...all.matchAll(/TEXT\.([A-Za-z0-9_]+)/g)].map((found) => found[1]));
  assert.deepEqual([...asked].filter((key) => !(key in TEXT)), []);
});

test("scripts hold no sentences of their own", () => {
  const words = /(?:["'`]|title="|label="|>)([A-Z][a-z]+(?: [a-z]+){2,}[^"'`]*)["'`<]/g, found = [];
  for (const [name, text] of Object.entries(source)) {
    const code = text.replace(/^\s*(?:\/\/|\/\*\*|\*).*$/gm, "");
    for (const match of code.matchAll(words)) found.push(`${name}: ${match[1]}`);
  }
  assert.deepEqual(found, []);
});

test("help says what holds for policies that choose per KV head", () => {
  for (const policy of ["H2O", "SnapKV", "PyramidKV", "while any head of the layer holds it"]) assert.ok(TEXT.textTokensHelp.includes(policy), policy);
});
