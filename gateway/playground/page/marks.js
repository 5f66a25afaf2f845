// Visual prompts: points, boxes and scribbles that a person draws on the picture, by pointer or by keyboard.

import { drawing } from "./elements.js";

// As the gateway has it.
export const MOST_MARKS = 16;
const MOST_POINTS = 1024;
// A scribble's width relative to the picture's longer side: a line across a thing, or a brush over what is to change.
const LINE = 1 / 50;
const BRUSH = 1 / 14;
// A press that moves less than this, in picture sides, is no box.
const SMALLEST_BOX = 1 / 200;
const STEP = 1 / 50;
const LONG_STEP = 1 / 10;

/** A mark is `{kind: "point" | "box" | "scribble", points, width}`; of a box the points are two corners. */
export function regionOf(mark) {
  const points = mark.points.map(([x, y]) => [tenth(x), tenth(y)]);
  if (mark.kind === "point") return { points };
  if (mark.kind === "scribble") return { stroke: { points, width: mark.width } };
  const [[ax, ay], [bx, by]] = points;
  return { box: [Math.min(ax, bx), Math.min(ay, by), Math.max(ax, bx), Math.max(ay, by)] };
}

/** A PNG of the picture's size in which the marked places are transparent, as edits take it. */
export async function maskOf(marks, picture) {
  const canvas = new OffscreenCanvas(picture.width, picture.height);
  const pen = canvas.getContext("2d");
  pen.fillRect(0, 0, picture.width, picture.height);
  pen.globalCompositeOperation = "destination-out";
  for (const mark of marks) {
    if (mark.kind === "box") {
      const [x1, y1, x2, y2] = regionOf(mark).box;
      pen.fillRect(x1, y1, x2 - x1, y2 - y1);
    } else {
      pen.lineCap = pen.lineJoin = "round";
      pen.lineWidth = mark.width;
      pen.stroke(new Path2D(pathOf(mark)));
    }
  }
  return canvas.convertToBlob({ type: "image/png" });
}

export class Marks extends EventTarget {
  #board;
  #announcer;
  #picture = null;
  #tool = null;
  #kinds = [];
  #all = [];
  #firstNumber = 1;
  #begun = null;
  #cursor = null;
  #isBrush = false;

  /** `board` is an svg over the picture that takes the pointer while a tool is chosen. */
  constructor(board, announcer) {
    super();
    this.#board = board;
    this.#announcer = announcer;
    board.addEventListener("pointerdown", (event) => this.#press(event));
    board.addEventListener("pointermove", (event) => this.#move(event));
    board.addEventListener("pointerup", () => this.#finish());
    board.addEventListener("pointercancel", () => this.#drop());
    board.addEventListener("keydown", (event) => this.#type(event));
    board.addEventListener("blur", () => this.#draw());
    board.addEventListener("focus", () => this.#draw());
  }

  /** The marks of the kinds that are taken. */
  get list() {
    return this.#all.filter((mark) => this.#kinds.includes(mark.kind));
  }

  get tool() {
    return this.#tool;
  }

  /** Begin anew on `picture`, or on none. */
  setPicture(picture) {
    this.#picture = picture;
    this.#cursor = picture && [picture.width / 2, picture.height / 2];
    if (picture) this.#board.setAttribute("viewBox", `0 0 ${picture.width} ${picture.height}`);
    this.clear();
  }

  /** "point", "box", "scribble", or null to leave the picture alone. */
  setTool(tool) {
    this.#tool = tool;
    this.#begun = null;
    this.#board.classList.toggle("is-drawing", tool !== null);
    // Without the attribute Chromium would stop at it, because it listens to the focus.
    this.#board.tabIndex = tool === null ? -1 : 0;
    this.#changed();
  }

  /** Which kinds are taken; `isBrush`: scribbles mean an area rather than a line. */
  setKinds(kinds, isBrush) {
    this.#kinds = kinds;
    this.#isBrush = isBrush;
    if (!kinds.includes(this.#tool)) this.setTool(null);
    else this.#changed();
  }

  /** The number that the next mark has in a conversation. */
  setFirstNumber(number) {
    this.#firstNumber = number;
    this.#draw();
  }

  undo() {
    const last = this.list.at(-1);
    this.#all = this.#all.filter((mark) => mark !== last);
    this.#changed();
  }

  clear() {
    this.#all = [];
    this.#begun = null;
    this.#changed();
  }

  /** Take `marks` of an example. */
  replace(marks) {
    this.#all = marks.map((mark) => ({ width: this.#width(), ...mark }));
    this.#changed();
  }

  #press(event) {
    if (!this.#tool || event.button !== 0) return;
    event.preventDefault();
    this.#board.focus({ preventScroll: true });
    this.#board.setPointerCapture(event.pointerId);
    this.#begin(this.#placeOf(event));
    if (this.#tool === "point") this.#finish();
  }

  #move(event) {
    if (!this.#begun || !this.#board.hasPointerCapture(event.pointerId)) return;
    for (const each of event.getCoalescedEvents?.() ?? [event]) this.#extend(this.#placeOf(each));
    this.#draw();
  }

  /** Arrows move a crosshair; Enter or space sets a point, or begins and ends a box or a scribble. */
  #type(event) {
    const arrow = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (arrow) {
      const step = Math.max(this.#picture.width, this.#picture.height) * (event.shiftKey ? LONG_STEP : STEP);
      this.#cursor = this.#inside(this.#cursor[0] + arrow[0] * step, this.#cursor[1] + arrow[1] * step);
      if (this.#begun) this.#extend(this.#cursor);
      this.#draw();
      this.#announcer.say(this.#cursor.map(Math.round).join(", "));
    } else if (event.key === "Enter" || event.key === " ") {
      if (this.#begun) {
        this.#finish();
      } else {
        this.#begin(this.#cursor);
        if (this.#tool === "point") this.#finish();
        else this.#announcer.say(`The ${this.#tool} begins here.`);
      }
      this.#draw();
    } else if (event.key === "Escape" && this.#begun) {
      this.#drop();
    } else if ((event.key === "Backspace" || event.key === "Delete") && this.list.length) {
      this.undo();
      this.#announcer.say("Mark removed.");
    } else {
      return;
    }
    event.preventDefault();
  }

  #begin(place) {
    if (this.list.length + this.#firstNumber > MOST_MARKS) {
      this.#announcer.say(`At most ${MOST_MARKS} marks.`);
      return;
    }
    const points = this.#tool === "point" ? [place] : [place, place];
    this.#begun = { kind: this.#tool, points, width: this.#width() };
  }

  #extend(place) {
    this.#cursor = place;
    if (this.#begun.kind === "box") this.#begun.points = [this.#begun.points[0], place];
    else if (this.#begun.points.length < MOST_POINTS) this.#begun.points.push(place);
  }

  #finish() {
    const mark = this.#begun;
    this.#begun = null;
    if (!mark) return;
    const [[ax, ay], [bx, by]] = [mark.points[0], mark.points.at(-1)];
    const least = Math.max(this.#picture.width, this.#picture.height) * SMALLEST_BOX;
    if (mark.kind !== "box" || (Math.abs(bx - ax) > least && Math.abs(by - ay) > least)) {
      this.#all.push(mark);
      this.#announcer.say(`Mark ${this.#firstNumber + this.list.length - 1}: ${mark.kind}.`);
    }
    this.#changed();
  }

  #drop() {
    this.#begun = null;
    this.#draw();
  }

  #changed() {
    this.#draw();
    this.dispatchEvent(new Event("change"));
  }

  #draw() {
    const shown = this.#begun ? [...this.list, this.#begun] : this.list;
    const unit = this.#picture ? Math.max(this.#picture.width, this.#picture.height) / 100 : 1;
    this.#board.replaceChildren(...shown.map((mark, place) => drawMark(mark, place + this.#firstNumber, unit)));
    if (this.#tool && this.#picture && this.#board.matches(":focus-visible")) {
      const [x, y] = this.#cursor;
      const { width, height } = this.#picture;
      this.#board.append(
        drawing("path", { class: "crosshair-halo", d: `M0 ${y}H${width}M${x} 0V${height}` }),
        drawing("path", { class: "crosshair", d: `M0 ${y}H${width}M${x} 0V${height}` }),
      );
    }
  }

  #width() {
    const longest = this.#picture ? Math.max(this.#picture.width, this.#picture.height) : 1;
    return tenth(Math.max(1, longest * (this.#isBrush ? BRUSH : LINE)));
  }

  #placeOf(event) {
    const edges = this.#board.getBoundingClientRect();
    return this.#inside(
      ((event.clientX - edges.left) / edges.width) * this.#picture.width,
      ((event.clientY - edges.top) / edges.height) * this.#picture.height,
    );
  }

  #inside(x, y) {
    return [Math.min(Math.max(x, 0), this.#picture.width), Math.min(Math.max(y, 0), this.#picture.height)];
  }
}

/** A mark as SVG, with its number; `unit` is a hundredth of the picture's longer side. */
export function drawMark(mark, number, unit) {
  const [x, y] = mark.points[0];
  const group = drawing("g", { class: `mark mark-${mark.kind}` });
  if (mark.kind === "scribble") {
    group.append(drawing("path", { class: "scribble", d: pathOf(mark), "stroke-width": mark.width }));
  } else if (mark.kind === "box") {
    const [x1, y1, x2, y2] = regionOf(mark).box;
    const sides = { x: x1, y: y1, width: x2 - x1, height: y2 - y1 };
    group.append(drawing("rect", { class: "mark-halo", ...sides }), drawing("rect", { class: "mark-edge", ...sides }));
  }
  group.append(
    drawing("circle", { class: "mark-dot", cx: x, cy: y, r: 2.2 * unit }),
    drawing("text", { class: "mark-number", x, y, "font-size": 2.8 * unit, dy: "0.35em" }, String(number)),
  );
  return group;
}

function pathOf(mark) {
  const [first, ...others] = mark.points;
  // A line of no length still shows its round ends.
  return `M${first.join(" ")}${others.map((point) => `L${point.join(" ")}`).join("") || "h0"}`;
}

function tenth(value) {
  return Math.round(value * 10) / 10;
}
