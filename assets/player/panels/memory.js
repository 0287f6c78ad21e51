// KV memory per token: what each cache holds and what each step reads.

import { byteUnit } from "../core/format.js";
import { chartMarkup, perToken } from "../charts/per_token.js";
import { shortLabel } from "../labels.js";
import { TEXT } from "../text.js";

/** @type {import("../core/panels.js").Panel} */
export const memory = {
  name: "memory",
  far: 300,
  label: TEXT.memory,
  help: TEXT.memoryHelp,
  column: "right",
  html: chartMarkup("memory", TEXT.memory),
  on: ["run", "opened", "complete", "pair", "ts", "focus"],
  mount(context) {
    const options = { x: TEXT.xToken, unit: "MiB", hover: ".2f", height: 200 };
    let size = 1;
    return perToken(context, "memory", options, {
      lines(run, arms) {
        const unit = byteUnit(run.fullBytes(run.start.limit));
        Object.assign(options, { unit: unit.name, hover: unit.name === "KiB" ? ".0f" : ".2f" });
        size = unit.size;
        const lines = [{ name: arms.some((arm) => arm.isFull) ? "" : TEXT.fullCache, color: "--avl-muted", dash: "dash", width: 1.5, markers: false }];
        arms.forEach((arm, place) => {
          const color = place ? "--avl-b" : "--avl-a", label = shortLabel(run, arm), core = !arm.isFull;
          lines.push({ name: core ? TEXT.storedOf(label) : TEXT.fullBoth(label), color, dash: "", width: 2.4, markers: false });
          lines.push({ name: core ? TEXT.readOf(label) : "", color, dash: "dot", width: 1.6, markers: false });
          lines.push({ name: core ? TEXT.readAtUpdate(label) : "", color, dash: "", width: 1, markers: true });
        });
        return lines;
      },
      points(run, arm, t, add, place) {
        if (!place) add(0, run.fullBytes(t) / size);
        add(1 + 3 * place, arm.storedBytes[t] / size);
        // an update reads everything stored: a line through it would be a band at 256 tokens
        if (t > 0) add((arm.update[t] ? 3 : 2) + 3 * place, arm.readBytes[t] / size);
      },
      keys: (run, arms, lines) => lines.filter((line, index) => line.name && (!line.markers || arms[Math.floor((index - 1) / 3)].update.some(Boolean))),
      note: (run) => TEXT.memoryNote(options.unit, run.start.batch),
    });
  },
};
