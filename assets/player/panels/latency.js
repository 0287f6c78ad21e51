// Time of each decode step; a few outliers do not flatten the rest.

import { put } from "../core/dom.js";
import { chartMarkup, perToken } from "../charts/per_token.js";
import { shortLabel } from "../labels.js";
import { quantile } from "../stats/times.js";
import { TEXT } from "../text.js";

const FEW = 20; // steps below which nothing counts as an outlier
const FAR = 1.5; // times the 98th percentile

/** @type {import("../core/panels.js").Panel} */
export const latency = {
  name: "latency",
  far: 290,
  label: TEXT.latency,
  help: TEXT.latencyHelp,
  column: "right",
  html: chartMarkup("latency", TEXT.latency),
  on: ["run", "opened", "complete", "pair", "ts", "focus"],
  mount(context) {
    return perToken(context, "latency", { x: TEXT.xToken, unit: "ms", hover: ".2f", height: 190 }, {
      lines: (run, arms) => arms.flatMap((arm, place) => {
        const color = place ? "--avl-b" : "--avl-a", label = shortLabel(run, arm);
        return [{ name: label, color, width: 1.8 }, { name: TEXT.updateOf(label), color, markers: true }];
      }),
      points(run, arm, t, add, place) {
        if (t < 1) return;
        add(2 * place, arm.ms[t]);
        if (arm.update[t]) add(2 * place + 1, arm.ms[t]);
      },
      // update steps have a key once there is one
      keys: (run, arms, lines) => lines.filter((line, index) => !line.markers || arms[Math.floor(index / 2)].update.some(Boolean)),
      note: () => TEXT.latencyNote,
      settle(run, arms, chart) {
        const steps = arms.flatMap((arm) => arm.stepMs()), top = outliersAbove(steps);
        chart.cut(top);
        const above = top === null ? [] : steps.filter((ms) => ms > top);
        put(context.parts.latencyNote, above.length ? `${TEXT.latencyNote} · ${TEXT.outliers(above.length, Math.max(...above))}` : TEXT.latencyNote);
      },
    });
  },
};

/** Where to cut an axis, so that the usual steps can be told apart; null where no step stands out. @param {number[]} steps ms */
export function outliersAbove(steps) {
  if (steps.length < FEW) return null;
  const usual = quantile(steps, 0.98), top = usual * FAR;
  return Math.max(...steps) > 2 * usual ? Number(top.toPrecision(2)) : null;
}
