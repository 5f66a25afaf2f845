// What all tabs share: one form, one request at a time, a button that cancels it, examples, and the run on show.

import { element } from "./elements.js";
import { RunView } from "./run_view.js";

export class Panel {
  /** Drawing tools whose marks the tab sends. */
  tools = [];
  /** Whether scribbles mean an area. */
  isBrush = false;
  /** Whether it asks about the picture on the stage. */
  needsPicture = false;
  /** The deployed service that the tab needs, or null. */
  service = null;
  #run = null;
  #views = new Map();
  #hasLostFocus = false;
  #send;
  #stop;
  #notice = element("p", { class: "notice", role: "status", hidden: true });
  #examples = element("ul");

  /** `page`: what the tabs share: gateway, stage, announcer, highlight, and what shows a run. */
  constructor(mode, root, page) {
    this.mode = mode;
    this.page = page;
    root.append(this.#notice, element("section", { class: "examples" }, element("h2", { class: "minor" }, "Examples"), this.#examples));
  }

  /** The run on show when the tab is chosen, or null. */
  get run() {
    return this.#run;
  }

  get firstRegion() {
    return 1;
  }

  /** Send the request that the form says. */
  async submit() {
    throw new Error("A tab says how it asks.");
  }

  /** Put an example into the form. */
  fill() {
    throw new Error("A tab says how it is filled in.");
  }

  /** Show what there is to try, list items, and whether the service that the tab needs `isMissing`. */
  offer(examples, isMissing) {
    this.#examples.replaceChildren(...examples);
    this.#notice.hidden = !isMissing;
    this.#notice.textContent = isMissing ? `This deployment has no ${this.service} service, which this tab needs.` : "";
  }

  /** Let `form` send, and give it the buttons that send and cancel, in `actions`. */
  attach(form, actions) {
    this.#send = actions.querySelector(".send");
    this.#stop = actions.querySelector(".stop");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.#run?.isRunning) return;
      if (this.needsPicture && this.page.stage.input === null) this.page.stage.askForPicture();
      else this.submit();
    });
    this.#stop.addEventListener("click", () => {
      this.cancel();
      this.#send.focus();
    });
  }

  /** Cancel what is running. */
  cancel() {
    if (this.#run?.isRunning) this.#run.cancel();
  }

  /** A view of `run`, which becomes the one on show. */
  present(run, options) {
    const view = new RunView(run, this.page, options);
    this.#views.set(run, view);
    this.#run = run;
    this.page.show(run);
    this.page.announcer.say("Sent.");
    return view;
  }

  /** Perform `run`; meanwhile the form cancels instead of sending. */
  async follow(run, work) {
    this.#setBusy(true);
    await run.perform(work);
    // An earlier one that was cancelled ends after the next has begun.
    if (!this.#run?.isRunning) this.#setBusy(false);
  }

  /** Forget `run`: nothing of it stays on the page or in memory once the stage shows another. */
  forget(run) {
    const view = this.#views.get(run);
    if (view.hasFocus) this.#hasLostFocus = true;
    view.remove();
    this.#views.delete(run);
    if (this.#run === run) this.#run = null;
  }

  forgetAll() {
    for (const run of this.#views.keys()) this.forget(run);
  }

  /** Say which run the stage shows. */
  setShown(run) {
    if (this.#views.has(run)) this.#run = this.#run?.isRunning ? this.#run : run;
    for (const [each, view] of this.#views) view.setShown(each === run);
  }

  #setBusy(isBusy) {
    // A button that goes away must not take the keyboard's place on the page with it.
    const moves = isBusy ? this.#hasLostFocus || this.#send.matches(":focus-visible") : document.activeElement === this.#stop;
    this.#hasLostFocus = false;
    this.#send.disabled = isBusy;
    this.#stop.hidden = !isBusy;
    if (moves) (isBusy ? this.#stop : this.#send).focus();
  }
}

/** The buttons that every form ends with. */
export function formActions(verb) {
  return element(
    "div",
    { class: "actions" },
    element("button", { type: "submit", class: "primary send" }, verb),
    element("button", { type: "button", class: "stop", hidden: true }, "Cancel"),
  );
}

/** A labelled field. `control` is its input; `hint` says more. */
export function field(label, control, hint = null) {
  const hintId = `${control.id}-hint`;
  if (hint) control.setAttribute("aria-describedby", hintId);
  return element(
    "div",
    { class: "field" },
    element("label", { for: control.id }, label),
    control,
    hint ? element("p", { class: "hint", id: hintId }, hint) : null,
  );
}

/** A labelled number that may be left empty, for options that a tool has values of its own for. */
export function numberField(label, id, attributes) {
  return field(label, element("input", { id, type: "number", placeholder: "auto", ...attributes }));
}
