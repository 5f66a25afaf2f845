// What tools found, as a list: every phrase with its finds, each tied to its shape on the picture.

import { element } from "./elements.js";
import { problemCard } from "./problem_card.js";

export class Findings {
  #run;
  #highlight;
  #nodes = [];
  #drawn = "";

  /** `root` is a list element; it is followed until `signal`. */
  constructor(root, run, highlight, signal) {
    this.root = root;
    this.#run = run;
    this.#highlight = highlight;
    highlight.addEventListener("change", () => this.#paint(), { signal });
  }

  update() {
    const groups = this.#run.groups();
    const drawn = JSON.stringify(groups.map(({ key, call }) => [key, call.status]));
    if (drawn === this.#drawn) return;
    this.#drawn = drawn;
    this.#nodes = [];
    const rows = groups.filter(({ phrase }) => isFind(phrase)).map((group) => this.#row(group));
    const failures = [...this.#run.calls.values()]
      .filter((call) => call.status === "failed" && call.error)
      .map((call) => element("li", {}, problemCard(call.error, `${call.tool || "A tool"} failed`)));
    this.root.replaceChildren(...rows, ...failures);
    this.root.hidden = rows.length + failures.length === 0;
    this.#paint();
  }

  #row(group) {
    const { phrase } = group;
    const detections = phrase.detections ?? [];
    const name = this.#tied("finding-name", group, null, phrase.phrase);
    const finds = detections.map((detection, item) =>
      this.#tied("finding-item", group, item, detection.score.toFixed(2), `${phrase.phrase} ${item + 1}, score`),
    );
    return element(
      "li",
      { class: "finding" },
      name,
      element("span", { class: "finding-state" }, stateOf(phrase)),
      finds.length ? element("span", { class: "finding-items" }, finds) : null,
    );
  }

  #tied(kind, group, item, text, title = null) {
    const node = element(
      "span",
      {
        class: `${kind} hue-${group.hue}`,
        role: "button",
        tabindex: "0",
        "aria-pressed": "false",
        "aria-label": title && `${title} ${text}`,
      },
      text,
    );
    this.#highlight.tie(node, this.#run, group.key, item);
    this.#nodes.push(node);
    return node;
  }

  #paint() {
    this.#highlight.paint(this.#run, this.#nodes);
  }
}

/** Whether a tool looked for the phrase: keypoints are told with the things that have them, made images shown. */
function isFind(phrase) {
  return typeof phrase.found === "boolean" || Boolean(phrase.detections?.length);
}

function stateOf({ found, score, detections = [] }) {
  if (found === false) return typeof score === "number" ? `not found, ${score.toFixed(2)}` : "not found";
  return `${detections.length} found`;
}
