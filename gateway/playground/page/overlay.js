// What tools found, drawn over the picture: boxes, outlines of masks, skeletons, each tied to the words that asked.

import { counted, drawing, element } from "./elements.js";
import { outlineOf } from "./outline.js";

// As in the SDK: below this a keypoint is hidden or guessed.
const SURE_KEYPOINT = 0.3;
// More labels than this would cover the picture; they then show for what is pointed at.
const MOST_LABELS = 14;

export class Overlay {
  #shapes;
  #labels;
  #highlight;
  #skeletons;
  #run = null;
  #nodes = [];
  #drawn = "";

  /**
   * `shapes` is an svg over the picture, `labels` an element over both; `skeletons` gives the bones of a thing by its
   * name, for answers that do not bring them along.
   */
  constructor(shapes, labels, highlight, skeletons) {
    this.#shapes = shapes;
    this.#labels = labels;
    this.#highlight = highlight;
    this.#skeletons = skeletons;
    highlight.addEventListener("change", () => this.#paint());
    shapes.addEventListener("keydown", (event) => this.#walk(event));
  }

  /** Show what `run` has found so far; null: nothing. */
  show(run) {
    const groups = run?.groups() ?? [];
    // Text arrives far more often than results do.
    const drawn = JSON.stringify(groups.map(({ key, call }) => [key, call.status]));
    if (run === this.#run && drawn === this.#drawn) return;
    const focused = this.#nodes.indexOf(document.activeElement);
    this.#run = run;
    this.#drawn = drawn;
    this.#shapes.replaceChildren();
    this.#labels.replaceChildren();
    this.#nodes = [];
    if (run === null || run.picture === null) return;
    this.#shapes.setAttribute("viewBox", `0 0 ${run.picture.width} ${run.picture.height}`);
    const finds = groups.flatMap((group) =>
      (group.phrase.detections ?? []).map((detection, item) => ({ group, detection, item })),
    );
    // The smaller ones on top, where a pointer reaches them.
    const stacked = finds.toSorted((first, second) => areaOf(second.detection) - areaOf(first.detection));
    const made = new Map(stacked.map((find) => [find, this.#shapeOf(find, groups)]));
    this.#shapes.append(...made.values());
    this.#nodes = finds.map((find) => made.get(find));
    this.#nodes.forEach((node, place) => (node.tabIndex = place === Math.max(0, focused) ? 0 : -1));
    this.#nodes.push(...this.#shapes.querySelectorAll(".keypoint[data-group]"));
    for (const find of finds) this.#label(find, finds.length <= MOST_LABELS);
    if (focused >= 0) made.get(finds[focused])?.focus();
    this.#paint();
  }

  #shapeOf({ group, detection, item }, groups) {
    const count = group.phrase.detections.length;
    const [x, y, width, height] = detection.bbox;
    const sides = { x, y, width: Math.max(width, 0.5), height: Math.max(height, 0.5) };
    const kind = kindOf(detection);
    const shape = drawing(
      "g",
      {
        class: `find find-${kind} hue-${group.hue}`,
        role: "button",
        "aria-pressed": "false",
        "aria-label": `${group.phrase.phrase}, ${kind} ${item + 1} of ${count}, score ${detection.score.toFixed(2)}`,
      },
      drawing("rect", { class: "halo", ...sides }),
      drawing("rect", { class: "edge", ...sides }),
    );
    if (detection.segmentation) shape.append(...maskOf(detection.segmentation));
    if (detection.keypoints) shape.append(...this.#skeletonOf(detection, group, groups));
    this.#highlight.tie(shape, this.#run, group.key, item);
    return shape;
  }

  #skeletonOf(detection, group, groups) {
    const sure = new Map(
      detection.keypoints.filter((point) => point.score >= SURE_KEYPOINT).map((point) => [point.name, point]),
    );
    const bones = (group.phrase.bones ?? this.#skeletons(group.phrase.phrase))
      .map((ends) => ends.map((name) => sure.get(name)))
      .filter(([first, second]) => first && second)
      .map(([first, second]) => `M${first.x} ${first.y}L${second.x} ${second.y}`)
      .join("");
    const asked = new Map(
      groups
        .filter((other) => other.call === group.call && other.isKeypoint)
        .map((other) => [other.phrase.phrase, other]),
    );
    const points = detection.keypoints.map((point) => {
      // Lines of no length with round ends: dots that keep their size whatever the picture's scale.
      const place = `M${point.x} ${point.y}h0`;
      const dot = drawing(
        "g",
        { class: sure.has(point.name) ? "keypoint" : "keypoint keypoint-unsure", tabindex: "-1" },
        drawing("title", {}, `${point.name}, ${point.score.toFixed(2)}`),
        drawing("path", { class: "rim", d: place }),
        drawing("path", { class: "dot", d: place }),
      );
      if (asked.has(point.name)) this.#highlight.tie(dot, this.#run, asked.get(point.name).key);
      return dot;
    });
    return [drawing("path", { class: "bones-halo", d: bones }), drawing("path", { class: "bones", d: bones }), ...points];
  }

  #label({ group, detection, item }, isShown) {
    const { width, height } = this.#run.picture;
    const [x, y, boxWidth] = detection.bbox;
    const label = element(
      "span",
      { class: `label hue-${group.hue}${isShown ? "" : " label-shy"}` },
      group.phrase.phrase,
      element("span", { class: "score" }, detection.score.toFixed(2)),
    );
    label.dataset.group = group.key;
    label.dataset.item = item;
    // From the box's outer edge towards the middle of the picture, where there is room for long words.
    const isRight = x + boxWidth / 2 > width / 2;
    const edge = Math.max(0, isRight ? width - x - boxWidth : x) / width;
    label.style[isRight ? "right" : "left"] = `${edge * 100}%`;
    label.style.maxWidth = `${(1 - edge) * 100}%`;
    label.classList.toggle("label-right", isRight);
    label.style.top = `${(Math.max(0, y) / height) * 100}%`;
    // Inside the box where there is no room above it.
    label.classList.toggle("label-inside", y / height < 0.07);
    this.#labels.append(label);
    this.#nodes.push(label);
  }

  #paint() {
    this.#highlight.paint(this.#run, this.#nodes);
  }

  /** One stop of the Tab key for all finds; arrow keys go from one to the next. */
  #walk(event) {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const finds = this.#nodes.filter((node) => node.classList.contains("find"));
    const place = finds.indexOf(document.activeElement);
    if (!step || place < 0) return;
    event.preventDefault();
    const next = finds[(place + step + finds.length) % finds.length];
    finds.forEach((node) => (node.tabIndex = node === next ? 0 : -1));
    next.focus();
  }
}

function maskOf(segmentation) {
  try {
    const outline = outlineOf(segmentation);
    return [drawing("path", { class: "mask-halo", d: outline }), drawing("path", { class: "mask", d: outline })];
  } catch (error) {
    console.error(error);
    return [];
  }
}

function kindOf({ segmentation, keypoints }) {
  return segmentation ? "mask" : keypoints ? "pose" : "box";
}

function areaOf({ bbox: [, , width, height] }) {
  return width * height;
}

/** "2 boxes", "1 mask and 1 pose": what tools found for a phrase, in words. */
export function findsInWords(phrase) {
  const detections = phrase.detections ?? [];
  const kinds = { mask: 0, pose: 0, box: 0, image: phrase.images?.length ?? 0 };
  for (const detection of detections) kinds[kindOf(detection)]++;
  const words = Object.entries(kinds)
    .filter(([, count]) => count)
    .map(([kind, count]) => counted(count, kind, kind === "box" ? "boxes" : `${kind}s`));
  return words.join(" and ") || "nothing";
}
