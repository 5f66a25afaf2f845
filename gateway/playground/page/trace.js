// The trace of a run: which token called which service, when and for how long; and what arrived, for who wants to see.

import { element } from "./elements.js";
import { firstResultAt, timelineOf, timesByService } from "./timeline.js";

export class Trace {
  #root;
  #run = null;
  #follow = () => this.#later();
  #isDue = false;

  /** `root` is an element that this fills. */
  constructor(root) {
    this.#root = root;
    this.#draw();
  }

  /** Follow `run`; null: nothing has been asked. */
  show(run) {
    if (run === this.#run) return;
    this.#run?.removeEventListener("change", this.#follow);
    this.#run = run;
    run?.addEventListener("change", this.#follow);
    this.#draw();
  }

  /** Once a frame is enough, however fast text arrives. */
  #later() {
    if (this.#isDue) return;
    this.#isDue = true;
    requestAnimationFrame(() => {
      this.#isDue = false;
      this.#draw();
    });
  }

  #draw() {
    const run = this.#run;
    if (run === null) {
      const text = "Ask something, and this shows which token called which service, when, and how long it took.";
      this.#root.replaceChildren(element("p", { class: "hint" }, text));
      return;
    }
    const isRawOpen = this.#root.querySelector(".raw")?.open ?? false;
    this.#root.replaceChildren(
      ...[timelineTable(run), note(run), facts(run), serviceTable(run), rawEvents(run, isRawOpen)].filter(Boolean),
    );
  }
}

function timelineTable(run) {
  const rows = timelineOf(run);
  const whole = Math.max(run.elapsed, ...rows.map(({ start, end }) => (start ?? 0) + (start === null ? end : 0)), 1);
  const head = element(
    "tr",
    {},
    ["Token", "Service", "For", "Start", "Took"].map((title) => element("th", { scope: "col" }, title)),
    element("th", { scope: "col", class: "bar-column" }, element("span", { class: "unseen" }, "Timeline")),
  );
  return element(
    "table",
    { class: "timeline" },
    element("caption", { class: "unseen" }, "Timeline of the request"),
    element("thead", {}, head),
    element("tbody", {}, rows.map((row) => timelineRow(row, whole, run.elapsed))),
  );
}

function timelineRow(row, whole, now) {
  const { token, service, about, start, state, parts } = row;
  const end = row.end ?? now;
  const took = start === null ? end : end - start;
  const bar = element("span", { class: `bar bar-${state}${start === null ? " bar-unplaced" : ""}` });
  bar.style.left = `${((start ?? 0) / whole) * 100}%`;
  bar.style.width = `${(took / whole) * 100}%`;
  const moment = took === 0 && row.end !== null;
  bar.classList.toggle("bar-moment", moment);
  const details = parts.map(({ phase, milliseconds }) => `${phase} ${inWords(milliseconds)}`).join(", ");
  return element(
    "tr",
    { title: details || null },
    element("td", { class: "token" }, token ? element("code", {}, token) : null),
    element("th", { scope: "row" }, service),
    element("td", { class: "about" }, about, state === "failed" || state === "cancelled" ? ` (${state})` : null),
    element("td", { class: "number" }, start === null ? "" : inWords(start)),
    element("td", { class: "number" }, moment ? "" : inWords(took), row.end === null ? " …" : null),
    element("td", { class: "bar-column", "aria-hidden": "true" }, element("span", { class: "track" }, bar)),
  );
}

function note(run) {
  if (run.isStream || run.isRunning || !run.timings.length) return null;
  const text = "This endpoint answers in one piece: it says how long each service took, not when.";
  return element("p", { class: "hint" }, text);
}

function facts(run) {
  const first = firstResultAt(run);
  const { usage } = run;
  const entries = [
    ["Request id", run.requestId && element("code", {}, run.requestId)],
    ["First result", first === null ? null : `after ${inWords(first)}`],
    ["Rounds", run.observations.length ? String(run.observations.length + 1) : null],
    ["Tokens read", usage && String(usage.prompt_tokens ?? usage.input_tokens)],
    ["Tokens written", usage && String(usage.completion_tokens ?? usage.output_tokens)],
  ].filter(([, value]) => value);
  if (!entries.length) return null;
  const pairs = entries.map(([name, value]) => element("div", {}, element("dt", {}, name), element("dd", {}, value)));
  return element("dl", { class: "facts" }, pairs);
}

function serviceTable(run) {
  const services = timesByService(run);
  if (!services.length) return null;
  return element(
    "table",
    { class: "services" },
    element("caption", {}, "Where the time went, in milliseconds"),
    element(
      "tbody",
      {},
      services.map(({ service, phases }) =>
        element(
          "tr",
          {},
          element("th", { scope: "row" }, service),
          element(
            "td",
            {},
            phases.map(({ phase, milliseconds }) =>
              element("span", { class: "phase" }, phase, " ", element("b", {}, milliseconds.toFixed(1))),
            ),
          ),
        ),
      ),
    ),
  );
}

function rawEvents(run, isOpen) {
  if (!run.raw.length) return null;
  const pre = element("pre", { tabindex: "0", "aria-label": "Raw events" });
  const fill = () => (pre.textContent = run.raw.map(({ at, text }) => `${inWords(at)}  ${text}`).join("\n"));
  const details = element("details", { class: "raw" }, element("summary", {}, `Raw events (${run.raw.length})`), pre);
  details.addEventListener("toggle", () => details.open && fill());
  details.open = isOpen;
  if (isOpen) fill();
  return details;
}

function inWords(value) {
  if (value >= 10_000) return `${(value / 1000).toFixed(1)} s`;
  return `${value > 0 && value < 10 ? value.toFixed(1) : Math.round(value)} ms`;
}
