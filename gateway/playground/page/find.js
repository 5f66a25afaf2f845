// The tabs "Detect", "Segment" and "Pose": known names in, what a tool finds of them out, without free text.

import { element } from "./elements.js";
import { regionOf } from "./marks.js";
import { field, formActions, numberField, Panel } from "./panel.js";
import { Run } from "./run.js";

const FIND_MODES = {
  detect: { verb: "Detect", path: "v1/detect", service: "detection", tools: [] },
  segment: { verb: "Segment", path: "v1/segment", service: "segmentation", tools: ["point", "box", "scribble"] },
  pose: { verb: "Find poses", path: "v1/pose", service: "pose", tools: [] },
};

export class FindPanel extends Panel {
  needsPicture = true;
  #path;
  #names;
  #isPhrase;
  #threshold;
  #isSemantic = null;
  #keypoints = null;
  #outcome;

  constructor(mode, root, page) {
    super(mode, root, page);
    const { verb, path, service, tools } = FIND_MODES[mode];
    this.#path = path;
    this.service = service;
    this.tools = tools;
    const input = (name, attributes) => element("input", { id: `${mode}-${name}`, autocomplete: "off", ...attributes });
    this.#names = input("names", { type: "text", placeholder: mode === "pose" ? "person" : "dog, cat", enterkeyhint: "go" });
    this.#isPhrase = input("phrase", { type: "checkbox" });
    const threshold = numberField("Least score", `${mode}-threshold`, { min: 0, max: 1, step: 0.05 });
    this.#threshold = threshold.querySelector("input");
    const options = [checkbox("One phrase, commas and all", this.#isPhrase)];
    if (mode === "segment") {
      this.#isSemantic = input("semantic", { type: "checkbox" });
      options.push(checkbox("One mask a name, not one a thing", this.#isSemantic));
    }
    const hints = {
      detect: "Names with commas between them.",
      segment: "Names with commas between them, or marks on the image, or both.",
      pose: "Names with commas between them.",
    };
    const form = element("form", {}, field("What to look for", this.#names, hints[mode]));
    if (mode === "pose") {
      this.#keypoints = input("keypoints", { type: "text", placeholder: "all that the tool knows" });
      form.append(field("Keypoints", this.#keypoints));
    }
    const actions = formActions(verb);
    form.append(element("div", { class: "options" }, options, threshold), actions);
    this.#outcome = element("div", { class: "outcome" });
    root.prepend(form, this.#outcome);
    this.attach(form, actions);
  }

  fill({ prompt, isPhrase = false, keypoints = "" }) {
    this.#names.value = prompt;
    this.#isPhrase.checked = isPhrase;
    this.#threshold.value = "";
    if (this.#keypoints) this.#keypoints.value = keypoints;
    if (this.#isSemantic) this.#isSemantic.checked = false;
  }

  async submit() {
    const { stage } = this.page;
    const words = this.#names.value.trim();
    // They stay: the next name is often looked for at the same places.
    const marks = this.tools.length ? stage.marks : [];
    if (!words && !marks.length) {
      this.#names.focus();
      return;
    }
    const prompt = words || "what is marked";
    const run = new Run({ mode: this.mode, prompt, picture: stage.input });
    this.forgetAll();
    const view = this.present(run, { showsPrompt: false, again: () => this.submit() });
    this.#outcome.replaceChildren(view.root);
    await this.follow(run, () => this.#ask(run, this.#body(run, words, marks)));
  }

  #body({ picture }, words, marks) {
    const body = new FormData();
    body.append("image", picture.blob, picture.name);
    if (words) body.append(this.#isPhrase.checked ? "phrase" : "categories", words);
    if (this.#threshold.value) body.append("score_threshold", this.#threshold.value);
    if (this.#isSemantic?.checked) body.append("semantic", "true");
    if (this.#keypoints?.value.trim()) body.append("keypoints", this.#keypoints.value.trim());
    if (marks.length) body.append("regions", JSON.stringify(marks.map(regionOf)));
    return body;
  }

  async #ask(run, body) {
    const { requestId, document } = await this.page.gateway.ask(this.#path, body, run.signal);
    run.requestId = requestId;
    run.keep(document);
    run.timings = document.timings;
    run.usage = document.usage;
    run.setCall(callOf(document, this.service));
  }
}

/** The response as the tool call of an answer, which is what everything else here shows. */
function callOf({ categories, detections }, tool) {
  const phrases = categories.map((category, index) => ({
    ...category,
    detections: detections.filter((detection) => detection.category_index === index),
  }));
  return { id: tool, tool, status: "completed", phrases };
}

function checkbox(label, input) {
  return element("label", { class: "check" }, input, element("span", {}, label));
}
