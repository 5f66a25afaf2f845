// One run in a panel: what was asked, the answer as it streams in, made pictures, finds, and how it ended.

import { AnswerText } from "./answer.js";
import { Sentences } from "./announcer.js";
import { counted, element } from "./elements.js";
import { Findings } from "./findings.js";
import { findsInWords } from "./overlay.js";
import { problemCard } from "./problem_card.js";

export class RunView {
  #run;
  #page;
  #again;
  #answer;
  #findings;
  #sentences = new Sentences();
  #saidQuarter = 0;
  #gone = new AbortController();
  #parts;

  /** `page` has the stage, the announcer and what else all panels share; `again` sends the request once more. */
  constructor(run, page, { showsPrompt, again }) {
    this.#run = run;
    this.#page = page;
    this.#again = again;
    this.#parts = {
      answer: element("p", { class: "answer" }),
      made: element("ul", { class: "made", "aria-label": "Made images" }),
      findings: element("ul", { class: "findings", "aria-label": "What was found" }),
      problem: element("div", {}),
      state: element("span", { class: "state" }),
      show: element("button", { type: "button", class: "quiet", onclick: () => page.show(run) }, "Show"),
    };
    const { answer, made, findings, problem, state, show } = this.#parts;
    const marks = run.marks.length ? element("span", { class: "prompt-marks" }, counted(run.marks.length, "mark")) : null;
    this.root = element(
      "article",
      { class: "run", "aria-label": `Answer to: ${run.prompt}` },
      showsPrompt ? element("p", { class: "prompt" }, run.prompt, " ", marks) : null,
      answer,
      made,
      findings,
      problem,
      element("footer", {}, state, show),
    );
    const { signal } = this.#gone;
    this.#answer = new AnswerText(answer, run, page.highlight, signal);
    this.#findings = new Findings(findings, run, page.highlight, signal);
    // Pointing at an earlier answer brings its picture back.
    for (const event of ["pointerenter", "focusin"]) answer.addEventListener(event, () => this.#bringBack());
    for (const event of ["pointerenter", "focusin"]) findings.addEventListener(event, () => this.#bringBack());
    run.addEventListener("change", () => this.#update(), { signal });
    this.#update();
  }

  /** Whether the keyboard is in it. */
  get hasFocus() {
    return this.root.querySelector(":focus-visible") !== null;
  }

  /** Take it off the page, for good. */
  remove() {
    this.root.remove();
    this.#gone.abort();
    this.#page.highlight.forget(this.#run);
  }

  /** Say whether the stage shows this run. */
  setShown(isShown) {
    this.root.classList.toggle("is-shown", isShown);
    this.#parts.show.hidden = isShown;
  }

  #bringBack() {
    if (this.#run.groups().length) this.#page.show(this.#run);
  }

  #update() {
    const run = this.#run;
    this.root.setAttribute("aria-busy", String(run.isRunning));
    this.root.dataset.status = run.status;
    this.#answer.update();
    this.#parts.answer.hidden = run.text === "";
    this.#findings.update();
    this.#showMade();
    this.#showState();
    this.#sayProgress();
    for (const sentence of this.#sentences.next(run.text, !run.isRunning)) this.#page.announcer.say(sentence);
    if (!run.isRunning && !this.root.dataset.ended) {
      this.root.dataset.ended = "true";
      this.#end();
    }
  }

  #showMade() {
    const made = this.#run.made();
    const { made: list } = this.#parts;
    list.hidden = made.length === 0;
    if (list.childElementCount === made.length) return;
    list.replaceChildren(
      ...made.map(({ picture, seed, group }) => {
        const image = element("img", { src: picture.url, alt: `Made for: ${group.phrase.phrase}` });
        const show = () => this.#page.show(this.#run, picture);
        const button = element("button", { type: "button", class: `frame hue-${group.hue}`, onclick: show }, image);
        this.#page.highlight.tie(button, this.#run, group.key);
        return element("li", {}, button, element("span", { class: "seed" }, `seed ${seed}`));
      }),
    );
  }

  #showState() {
    const run = this.#run;
    const seconds = `${(run.elapsed / 1000).toFixed(2)} s`;
    const { progress } = run;
    const running = progress
      ? `Step ${progress.done} of ${progress.total}`
      : run.text
        ? "Answering"
        : "Waiting for the first result";
    this.#parts.state.textContent = {
      running,
      done: run.finishReason === "length" ? `${seconds}, cut off at a limit` : seconds,
      failed: `Failed after ${seconds}`,
      cancelled: `Cancelled after ${seconds}`,
    }[run.status];
  }

  /** A drawing takes long: each quarter of its steps is said. */
  #sayProgress() {
    const { progress, isRunning } = this.#run;
    const quarter = isRunning && progress ? Math.floor((4 * progress.done) / progress.total) : 0;
    if (quarter <= this.#saidQuarter || quarter === 4) return;
    this.#saidQuarter = quarter;
    this.#page.announcer.say(`Step ${progress.done} of ${progress.total}.`);
  }

  #end() {
    const run = this.#run;
    const { announcer } = this.#page;
    const again = element("button", { type: "button", onclick: () => this.#again() }, "Try again");
    if (run.status === "failed") {
      const key = element("button", { type: "button", onclick: () => this.#page.askForKey() }, "Enter an API key");
      const actions = [run.problem.isAboutKey ? key : null, again].filter(Boolean);
      this.#parts.problem.append(problemCard(run.problem, null, actions));
    } else if (run.status === "cancelled") {
      this.#parts.problem.append(element("p", { class: "actions" }, again));
      announcer.say("Cancelled.");
    } else {
      const found = run
        .groups()
        .filter(({ isKeypoint, call }) => !isKeypoint && call.status === "completed")
        .map(({ phrase }) => `${phrase.phrase}: ${findsInWords(phrase)}.`);
      announcer.say(["Done.", ...found].join(" "));
      const isWhole = [...run.calls.values()].every(({ status }) => status !== "failed");
      if (!isWhole) this.#parts.problem.append(element("p", { class: "actions" }, again));
    }
  }
}
