// The tabs "Generate" and "Edit": images from words, whose steps and results stream in.

import { element } from "./elements.js";
import { maskOf } from "./marks.js";
import { field, formActions, numberField, Panel } from "./panel.js";
import { madeImage, Run } from "./run.js";

const DRAW_MODES = {
  generate: {
    verb: "Generate",
    path: "v1/images/generations",
    label: "What to draw",
    placeholder: "a cat beside a pine tree",
    hint: null,
    tools: [],
  },
  edit: {
    verb: "Edit",
    path: "v1/images/edits",
    label: "What to change",
    placeholder: "make the butterflies red",
    hint: "Mark a place on the image, where words alone would not say which.",
    tools: ["box", "scribble"],
  },
};

export class DrawPanel extends Panel {
  service = "diffusion";
  isBrush = true;
  #path;
  #prompt;
  #count;
  #tuning;
  #outcome;

  constructor(mode, root, page) {
    super(mode, root, page);
    const { verb, path, label, placeholder, hint, tools } = DRAW_MODES[mode];
    this.#path = path;
    this.tools = tools;
    this.needsPicture = mode === "edit";
    this.#prompt = element("textarea", { id: `${mode}-prompt`, rows: 2, placeholder });
    this.#count = element(
      "select",
      { id: `${mode}-count` },
      [1, 2, 3, 4].map((count) => element("option", { value: count }, String(count))),
    );
    const numbers = {
      seed: numberField("Seed", `${mode}-seed`, { min: 0, max: Number.MAX_SAFE_INTEGER, step: 1 }),
      steps: numberField("Steps", `${mode}-steps`, { min: 1, max: 100, step: 1 }),
      guidance: numberField("Guidance", `${mode}-guidance`, { min: 0, max: 30, step: "any" }),
    };
    if (mode === "edit") {
      numbers.image_guidance = numberField("Image guidance", `${mode}-image-guidance`, { min: 0, max: 30, step: "any" });
    }
    this.#tuning = Object.fromEntries(
      Object.entries(numbers).map(([name, made]) => [name, made.querySelector("input")]),
    );
    const actions = formActions(verb);
    const form = element(
      "form",
      {},
      field(label, this.#prompt, hint),
      element("div", { class: "options options-numbers" }, field("Images", this.#count), Object.values(numbers)),
      actions,
    );
    this.#outcome = element("div", { class: "outcome" });
    root.prepend(form, this.#outcome);
    this.attach(form, actions);
  }

  fill({ prompt, seed = "" }) {
    this.#prompt.value = prompt;
    this.#count.value = "1";
    for (const input of Object.values(this.#tuning)) input.value = "";
    this.#tuning.seed.value = seed;
  }

  async submit() {
    const { stage } = this.page;
    const prompt = this.#prompt.value.trim();
    if (!prompt) {
      this.#prompt.focus();
      return;
    }
    const picture = this.needsPicture ? stage.input : null;
    const run = new Run({ mode: this.mode, prompt, picture });
    run.isStream = true;
    this.forgetAll();
    const view = this.present(run, { showsPrompt: false, again: () => this.submit() });
    this.#outcome.replaceChildren(view.root);
    await this.follow(run, async () => this.#stream(run, await this.#body(run)));
  }

  async #body({ prompt, picture }) {
    const tuning = Object.entries(this.#tuning).filter(([, input]) => input.value !== "");
    if (!this.needsPicture) {
      const superlink = Object.fromEntries(tuning.map(([name, input]) => [name, Number(input.value)]));
      return { prompt, n: Number(this.#count.value), stream: true, superlink };
    }
    const body = new FormData();
    body.append("image", picture.blob, picture.name);
    const { marks } = this.page.stage;
    if (marks.length) body.append("mask", await maskOf(marks, picture), "mask.png");
    body.append("prompt", prompt);
    body.append("n", this.#count.value);
    body.append("stream", "true");
    for (const [name, input] of tuning) body.append(`superlink[${name}]`, input.value);
    return body;
  }

  async #stream(run, body) {
    const { requestId, documents } = await this.page.gateway.stream(this.#path, body, run.signal);
    run.requestId = requestId;
    const images = [];
    const show = (status, progress = null) => {
      const phrases = [{ phrase: run.prompt, images: [...images] }];
      run.setCall({ id: "draw", tool: this.service, status, phrases, progress, timings: run.timings });
    };
    for await (const document of documents) {
      run.keep(document);
      if (document.type === "superlink.progress") {
        show("running", document);
      } else {
        images.push(madeImage(document));
        run.timings = document.timings;
        run.usage = document.usage;
        show("running");
      }
    }
    show("completed");
  }
}
