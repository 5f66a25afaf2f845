// An answer's text, with the phrases that called tools as things to point at.

import { element } from "./elements.js";
import { findsInWords } from "./overlay.js";

export class AnswerText {
  #run;
  #highlight;
  #phrases = new Map();
  #laidOut = "";
  #tail = null;

  /** `root` is the element that the text goes into; it is followed until `signal`. */
  constructor(root, run, highlight, signal) {
    this.root = root;
    this.#run = run;
    this.#highlight = highlight;
    highlight.addEventListener("change", () => this.#paint(), { signal });
  }

  /** Show the run's text so far. */
  update() {
    // Spans count code points, not the halves of surrogate pairs.
    const text = Array.from(this.#run.text);
    const groups = this.#run
      .groups()
      .filter(({ phrase }) => phrase.span && phrase.span.end <= text.length)
      .toSorted((first, second) => first.phrase.span.start - second.phrase.span.start);
    const laidOut = groups.map(({ key }) => key).join();
    // Text that only grows leaves the phrases alone, and with them focus and pointer.
    if (laidOut !== this.#laidOut || this.#tail === null) this.#layOut(text, groups);
    else this.#tail.node.data = text.slice(this.#tail.start).join("");
    this.#laidOut = laidOut;
    for (const group of groups) this.#dress(group);
    this.#paint();
  }

  #layOut(text, groups) {
    const focused = this.root.contains(document.activeElement) ? document.activeElement : null;
    const parts = [];
    let place = 0;
    for (const group of groups) {
      const { start, end } = group.phrase.span;
      // Two tools may be called for the same words: they share the first one's place.
      if (start < place) continue;
      parts.push(text.slice(place, start).join(""), this.#phraseNode(group, text.slice(start, end).join("")));
      place = end;
    }
    this.#tail = { start: place, node: document.createTextNode(text.slice(place).join("")) };
    this.root.replaceChildren(...parts, this.#tail.node);
    focused?.focus();
  }

  #phraseNode(group, words) {
    if (!this.#phrases.has(group.key)) {
      const node = element(
        "span",
        { class: `phrase hue-${group.hue}`, role: "button", tabindex: "0", "aria-pressed": "false" },
        words,
      );
      this.#highlight.tie(node, this.#run, group.key);
      this.#phrases.set(group.key, node);
    }
    return this.#phrases.get(group.key);
  }

  /** What became of the phrase: how it looks, and what is said of it. */
  #dress(group) {
    const node = this.#phrases.get(group.key);
    if (!node) return;
    const { call, phrase, isKeypoint } = group;
    const isAbsent = call.status === "completed" && phrase.found === false;
    node.classList.toggle("is-running", call.status === "running");
    node.classList.toggle("is-failed", call.status === "failed");
    node.classList.toggle("is-absent", isAbsent);
    const outcome = {
      running: `${call.tool || "a tool"} is looking`,
      failed: "the tool failed",
      completed: isAbsent ? "not in the image" : isKeypoint ? "a keypoint" : findsInWords(phrase),
    }[call.status];
    node.setAttribute("aria-label", `${phrase.phrase}: ${outcome}`);
    const count = (phrase.detections ?? []).length;
    node.dataset.count = call.status === "completed" && count ? count : "";
  }

  #paint() {
    this.#highlight.paint(this.#run, this.#phrases.values());
  }
}
