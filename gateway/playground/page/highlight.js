// Ties words to what was found for them: pointing at one, by pointer or keyboard, brings out the other.
//
// Elements say what they belong to: `data-run`, `data-group` (a phrase of a tool call) and, where they are one find of
// several, `data-item`. A press holds the highlight until the next one, for screens without a pointer that hovers.

export class Highlight extends EventTarget {
  /** Nodes that are pointed at, those inside others last, and what they stand for: `{run, group, item}`. */
  #pointed = new Map();
  #held = null;

  get current() {
    // A node that was replaced while the pointer was over it never hears that it left.
    const pointed = [...this.#pointed].findLast(([node]) => node.isConnected);
    return pointed?.[1] ?? this.#held;
  }

  /** Make `node` part of `group` of `run`; `item` is the number of a find, or null for all of them. */
  tie(node, run, group, item = null) {
    const target = { run, group, item };
    node.dataset.group = group;
    if (item !== null) node.dataset.item = item;
    node.addEventListener("pointerenter", (event) => {
      if (event.pointerType === "mouse") this.#point(node, target);
    });
    node.addEventListener("pointerleave", () => this.#leave(node));
    node.addEventListener("focus", () => this.#point(node, target));
    node.addEventListener("blur", () => this.#leave(node));
    node.addEventListener("click", (event) => {
      event.stopPropagation();
      this.#hold(same(this.#held, target) ? null : target);
    });
    node.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" && event.key !== " ") return;
      event.preventDefault();
      this.#hold(same(this.#held, target) ? null : target);
    });
  }

  /** Let go of everything that belongs to `run`, which is not shown any more. */
  forget(run) {
    if (this.#held?.run === run) this.#hold(null);
    for (const [node, target] of this.#pointed) if (target.run === run) this.#pointed.delete(node);
  }

  /** Let go of what is held. */
  release() {
    this.#pointed.clear();
    this.#hold(null);
  }

  /** Mark `nodes`, all tied to `run`: what is brought out, what stays, what steps back. */
  paint(run, nodes) {
    const current = this.current?.run === run ? this.current : null;
    for (const node of nodes) {
      const { group, item } = node.dataset;
      const isOfGroup = current !== null && group === current.group;
      const isActive = isOfGroup && (current.item === null || item === undefined || Number(item) === current.item);
      node.classList.toggle("is-active", isActive);
      node.classList.toggle("is-dimmed", current !== null && !isOfGroup);
      const held = this.#held;
      const isHeld = held?.run === run && held.group === group && (held.item ?? undefined) === toNumber(item);
      if (node.hasAttribute("aria-pressed")) node.setAttribute("aria-pressed", String(isHeld));
    }
  }

  #point(node, target) {
    for (const other of this.#pointed.keys()) if (!other.isConnected) this.#pointed.delete(other);
    this.#pointed.set(node, target);
    this.dispatchEvent(new Event("change"));
  }

  #leave(node) {
    this.#pointed.delete(node);
    this.dispatchEvent(new Event("change"));
  }

  #hold(target) {
    this.#held = target;
    this.dispatchEvent(new Event("change"));
    if (target) this.dispatchEvent(new Event("held"));
  }
}

function same(first, second) {
  return first?.run === second.run && first.group === second.group && first.item === second.item;
}

function toNumber(item) {
  return item === undefined ? undefined : Number(item);
}
