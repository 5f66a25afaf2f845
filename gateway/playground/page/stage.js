// The picture: chosen, dropped or pasted by a person, or made by a tool; with what was found on it and marked on it.

import { counted, element } from "./elements.js";
import { drawMark, MOST_MARKS } from "./marks.js";
import { Overlay } from "./overlay.js";
import { Picture } from "./picture.js";

const TOOLS = ["point", "box", "scribble"];

export class Stage extends EventTarget {
  #parts;
  #announcer;
  #highlight;
  #marks;
  #overlay;
  #input = null;
  #run = null;
  #shown = null;
  #tools = [];
  #follow = null;

  /** `parts` are the elements of the page by their ids; `marks` draws on `parts.board`. */
  constructor(parts, { announcer, highlight, marks, skeletons }) {
    super();
    this.#parts = parts;
    this.#announcer = announcer;
    this.#highlight = highlight;
    this.#marks = marks;
    this.#overlay = new Overlay(parts.shapes, parts.labels, highlight, skeletons);
    this.#takeFiles();
    for (const tool of TOOLS) {
      parts[`tool-${tool}`].addEventListener("click", () => this.#choose(this.#marks.tool === tool ? null : tool));
    }
    parts["marks-undo"].addEventListener("click", () => marks.undo());
    parts["marks-clear"].addEventListener("click", () => marks.clear());
    parts["remove-picture"].addEventListener("click", () => {
      this.setInput(null);
      parts["file"].focus();
    });
    parts.mat.addEventListener("click", () => highlight.release());
    marks.addEventListener("change", () => this.#showTools());
    this.#render();
  }

  /** The picture that the next request is about, or null. */
  get input() {
    return this.#input;
  }

  /** What is marked on it, of the kinds that the mode takes. */
  get marks() {
    return this.#marks.list;
  }

  /** The marks, which are then no longer drawn. */
  takeMarks() {
    const taken = this.#marks.list;
    this.#marks.clear();
    this.#choose(null);
    return taken;
  }

  /** Draw `marks` of an example. */
  setMarks(marks) {
    this.#marks.replace(marks);
  }

  /** The number of the next mark: conversations count them through all their turns. */
  setFirstRegion(number) {
    this.#marks.setFirstNumber(number);
  }

  /** Say that a picture is missing, and where to choose one. */
  askForPicture() {
    this.#parts["file-problem"].textContent = "Choose an image first.";
    this.#parts.file.focus();
  }

  /** Make `picture`, which a tool made, what the next request is about; the run that made it stays on show. */
  goOnWith(picture) {
    this.#input = picture;
    this.#marks.setPicture(picture);
    this.#render();
  }

  /** Make `picture` what the next request is about, and show it without results. */
  setInput(picture) {
    this.#input = picture;
    this.#marks.setPicture(picture);
    this.#parts["file-problem"].textContent = "";
    this.#choose(null);
    this.showRun(null);
    this.dispatchEvent(new Event("input"));
  }

  /** Show what `run` looked at and found, or `picture`, one that it made; null: what the next request is about. */
  showRun(run, picture = null) {
    if (run !== this.#run) {
      this.#run?.removeEventListener("change", this.#follow);
      this.#run = run;
      this.#shown = null;
      this.#follow = () => this.#render();
      run?.addEventListener("change", this.#follow);
    }
    if (picture) this.#shown = picture;
    this.#render();
  }

  /** Which of the drawing tools the mode takes; `isBrush`: scribbles mean an area. */
  setTools(tools, isBrush) {
    this.#tools = tools;
    this.#marks.setKinds(tools, isBrush);
  }

  #choose(tool) {
    // Marks are for the next request's picture.
    if (tool !== null) this.#shown = this.#input;
    this.#marks.setTool(tool);
    if (tool !== null) {
      this.#announcer.say(`Drawing a ${tool}. In the picture, arrow keys move, Enter sets.`);
      this.#render();
    }
  }

  /**
   * The picture on show: the one that was asked for, else the last that the run made, else what it looked at. A run that
   * was to make one and did not leaves what the next request is about.
   */
  #picture() {
    if (this.#shown) return this.#shown;
    if (!this.#run) return this.#input;
    const picture = this.#run.made().at(-1)?.picture ?? this.#run.picture;
    return picture ?? (this.#run.isRunning ? null : this.#input);
  }

  #render() {
    const { canvas, empty, picture, waiting } = this.#parts;
    const shown = this.#picture();
    canvas.hidden = shown === null;
    const isDrawing = shown === null && Boolean(this.#run?.isDrawing);
    empty.hidden = shown !== null || isDrawing;
    waiting.hidden = !isDrawing;
    if (shown !== null && picture.src !== shown.url) {
      picture.src = shown.url;
      picture.alt = this.#describe(shown);
      canvas.style.setProperty("--ratio", shown.width / shown.height);
    }
    this.#overlay.show(this.#run && shown === this.#run.picture ? this.#run : null);
    this.#showSentMarks(shown);
    this.#showProgress();
    this.#showFilmstrip(shown);
    this.#showTools();
  }

  /** Marks of the run, which are no longer the next request's. */
  #showSentMarks(shown) {
    const { sent } = this.#parts;
    const run = this.#run;
    sent.replaceChildren();
    if (!run || shown !== run.picture || !run.marks.length) return;
    sent.setAttribute("viewBox", `0 0 ${shown.width} ${shown.height}`);
    const unit = Math.max(shown.width, shown.height) / 100;
    sent.append(...run.marks.map((mark, place) => drawMark(mark, run.firstRegion + place, unit)));
  }

  #showProgress() {
    const { progress } = this.#parts;
    const done = this.#run?.isRunning ? this.#run.progress : null;
    progress.hidden = !done;
    if (!done) return;
    progress.querySelector("progress").max = done.total;
    progress.querySelector("progress").value = done.done;
    progress.querySelector("span").textContent = `Step ${done.done} of ${done.total}`;
  }

  #showFilmstrip(shown) {
    const { filmstrip, "made-actions": actions } = this.#parts;
    const made = this.#run?.made() ?? [];
    const pictures = [
      ...(this.#run?.picture ? [{ picture: this.#run.picture, title: "Source" }] : []),
      ...made.map(({ picture, seed }, place) => ({ picture, title: `Result ${place + 1}, seed ${seed}` })),
    ];
    filmstrip.hidden = made.length === 0 || pictures.length < 2;
    const known = [...filmstrip.children].map((item) => item.dataset.url).join();
    if (known !== pictures.map(({ picture }) => picture.url).join()) {
      filmstrip.replaceChildren(...pictures.map((each) => this.#frame(each)));
    }
    for (const item of filmstrip.children) {
      item.firstElementChild.setAttribute("aria-pressed", String(item.dataset.url === shown?.url));
    }
    const current = made.find(({ picture }) => picture === shown)?.picture;
    actions.hidden = !current;
    if (!current) return;
    this.#parts["save-made"].href = current.url;
    this.#parts["save-made"].download = current.name;
    this.#parts["use-made"].hidden = current === this.#input;
    this.#parts["use-made"].onclick = () => this.setInput(current);
  }

  #frame({ picture, title }) {
    const show = () => {
      this.#shown = picture;
      this.#render();
    };
    const image = element("img", { src: picture.url, alt: "" });
    const button = element("button", { type: "button", class: "frame", "aria-label": title, title, onclick: show }, image);
    return element("li", { "data-url": picture.url }, button);
  }

  #showTools() {
    const { tools, board } = this.#parts;
    const isMarkable = this.#input !== null && this.#tools.length > 0;
    tools.hidden = !isMarkable;
    for (const tool of TOOLS) {
      const button = this.#parts[`tool-${tool}`];
      button.hidden = !this.#tools.includes(tool);
      button.setAttribute("aria-pressed", String(this.#marks.tool === tool));
    }
    const isOpen = isMarkable && this.#picture() === this.#input;
    board.classList.toggle("is-hidden", !isOpen);
    const count = this.#marks.list.length;
    this.#parts["marks-undo"].disabled = this.#parts["marks-clear"].disabled = count === 0;
    this.#parts["marks-count"].textContent = count ? `${counted(count, "mark")} of at most ${MOST_MARKS}` : "";
    this.#parts["marks-help"].hidden = this.#marks.tool === null;
    const isInputShown = this.#input !== null && this.#picture() === this.#input;
    this.#parts["remove-picture"].hidden = !isInputShown;
    this.#parts["choose-text"].textContent = isInputShown ? "Replace" : "Choose an image";
  }

  #describe(picture) {
    const origin = picture === this.#run?.picture || picture === this.#input ? "The image" : "An image that was made";
    return `${origin}: ${picture.name}, ${picture.width} by ${picture.height} pixels`;
  }

  #takeFiles() {
    const { file, mat } = this.#parts;
    file.addEventListener("change", () => {
      if (file.files.length) this.#read(file.files[0]);
      // So that the same file can be chosen again.
      file.value = "";
    });
    document.addEventListener("paste", (event) => {
      const pasted = [...(event.clipboardData?.files ?? [])].find((each) => each.type.startsWith("image/"));
      if (!pasted) return;
      event.preventDefault();
      this.#read(pasted);
    });
    let depth = 0;
    const isOver = (change) => {
      depth = Math.max(0, depth + change);
      mat.classList.toggle("is-over", depth > 0);
    };
    // A file that misses the frame must not replace the page.
    document.addEventListener("dragover", (event) => event.preventDefault());
    document.addEventListener("dragenter", () => isOver(1));
    document.addEventListener("dragleave", () => isOver(-1));
    document.addEventListener("drop", (event) => {
      event.preventDefault();
      isOver(-Infinity);
      const dropped = event.dataTransfer.files[0];
      if (dropped) this.#read(dropped);
    });
  }

  async #read(file) {
    const { "file-problem": problem } = this.#parts;
    try {
      this.setInput(await Picture.read(file, file.name || "pasted image"));
      this.#announcer.say(`Image ${this.#input.name}, ${this.#input.width} by ${this.#input.height} pixels.`);
    } catch (error) {
      problem.textContent = error.message;
    }
  }
}
