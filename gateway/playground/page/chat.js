// The tab "Chat": a conversation about images, whose answers stream in.

import { element } from "./elements.js";
import { regionOf } from "./marks.js";
import { Panel } from "./panel.js";
import { Run } from "./run.js";

// Of the answers that a conversation holds; the first ones are forgotten.
const MOST_EXCHANGES = 30;

export class ChatPanel extends Panel {
  tools = ["point", "box", "scribble"];
  #form;
  #field;
  #transcript;
  #fresh;
  #exchanges = [];

  constructor(root, page) {
    super("chat", root, page);
    this.#form = root.querySelector("form");
    this.#field = root.querySelector("textarea");
    this.#transcript = root.querySelector(".transcript");
    this.#fresh = root.querySelector(".fresh");
    this.attach(this.#form, this.#form.querySelector(".actions"));
    this.#field.addEventListener("keydown", (event) => {
      // While an input method is composing, Enter ends the composition.
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.#form.requestSubmit();
    });
    this.#fresh.addEventListener("click", () => {
      this.#startAnew();
      this.#field.focus();
    });
  }

  /** Regions are numbered through the whole conversation. */
  get firstRegion() {
    return 1 + this.#exchanges.reduce((sum, { run }) => sum + (run.status === "done" ? run.marks.length : 0), 0);
  }

  fill(example) {
    this.#startAnew();
    this.#field.value = example.prompt;
  }

  async submit() {
    const prompt = this.#field.value.trim();
    if (!prompt) {
      this.#field.focus();
      return;
    }
    const { stage } = this.page;
    const marks = stage.takeMarks();
    this.#field.value = "";
    await this.#ask(prompt, stage.input, marks);
  }

  async #ask(prompt, picture, marks) {
    const run = new Run({ mode: this.mode, prompt, picture, marks, firstRegion: this.firstRegion });
    run.isStream = true;
    const view = this.present(run, { showsPrompt: true, again: () => this.#askAgain(run) });
    this.#exchanges.push({ run, view });
    this.#transcript.append(view.root);
    this.#forgetTheFirst();
    this.#fresh.hidden = false;
    view.root.scrollIntoView({ block: "nearest" });
    await this.follow(run, async () => this.#stream(run, await this.#messages(run)));
    const made = run.made().at(-1);
    // Tools look at the conversation's last image, whoever made it.
    if (run.status === "done" && made && this.page.stage.input === picture) this.page.stage.goOnWith(made.picture);
    this.page.stage.setFirstRegion(this.firstRegion);
  }

  #askAgain(run) {
    this.#exchanges = this.#exchanges.filter((exchange) => exchange.run !== run);
    this.forget(run);
    return this.#ask(run.prompt, run.picture, run.marks);
  }

  #forgetTheFirst() {
    if (this.#exchanges.length <= MOST_EXCHANGES) return;
    this.forget(this.#exchanges.shift().run);
    if (this.#transcript.firstElementChild.matches(".forgotten")) return;
    const text = `A conversation holds ${MOST_EXCHANGES} questions; the first ones are forgotten.`;
    this.#transcript.prepend(element("p", { class: "hint forgotten", role: "status" }, text));
  }

  async #stream(run, messages) {
    const body = { messages, stream: true, stream_options: { include_usage: true } };
    const { requestId, documents } = await this.page.gateway.stream("v1/chat/completions", body, run.signal);
    run.requestId = requestId;
    for await (const document of documents) {
      run.keep(document);
      if (document.usage) run.usage = document.usage;
      const [choice] = document.choices;
      if (!choice) continue;
      const { content, superlink } = choice.delta;
      if (choice.finish_reason) run.finishReason = choice.finish_reason;
      if (superlink?.timings) run.timings = superlink.timings;
      if (content) run.addText(content);
      for (const call of superlink?.tool_calls ?? []) run.setCall(call);
      for (const observation of superlink?.observations ?? []) run.addObservation(observation);
    }
  }

  /** The conversation so far, and `run`'s question. What failed or was cancelled is no part of it. */
  async #messages(run) {
    const earlier = this.#exchanges.map((exchange) => exchange.run).filter((each) => each.status === "done");
    const lastMade = earlier.flatMap((each) => each.made()).at(-1)?.picture ?? null;
    const messages = [];
    let shown = null;
    for (const each of earlier) {
      messages.push(await question(each, shown), await reply(each, lastMade));
      shown = each.made().at(-1)?.picture ?? each.picture;
    }
    messages.push(await question(run, shown));
    return messages;
  }

  #startAnew() {
    this.cancel();
    this.#exchanges = [];
    this.#transcript.replaceChildren();
    this.#fresh.hidden = true;
    this.forgetAll();
    this.page.stage.setFirstRegion(1);
    this.page.show(null);
  }
}

/** The user's message of `run`; the picture goes along where it is another than the conversation `shown` last. */
async function question(run, shown) {
  const content = [];
  if (run.picture && run.picture !== shown) {
    content.push({ type: "image_url", image_url: { url: await run.picture.dataUrl() } });
  }
  for (const mark of run.marks) content.push({ type: "region", region: regionOf(mark) });
  content.push({ type: "text", text: run.prompt });
  return { role: "user", content };
}

/**
 * The answer as the API wants it back, so that the model sees its own phrases and results again. Of the images that
 * answers made only `lastMade` goes along: the gateway reads no other.
 */
async function reply(run, lastMade) {
  const withLastMade = async (phrase) => {
    const isLast = phrase.images?.some(({ picture }) => picture === lastMade);
    return { ...phrase, images: isLast ? [await lastMade.asResult(phrase.images.at(-1).seed)] : [] };
  };
  const calls = [...run.calls.values()].map(async (call) => ({
    ...call,
    phrases: await Promise.all(call.phrases.map(withLastMade)),
  }));
  const superlink = { tool_calls: await Promise.all(calls), observations: run.observations };
  return { role: "assistant", content: run.text, superlink };
}
