// Says to screen readers what happens. Text that streams in is said in whole sentences, not in the pieces it comes in.

const SENTENCE = /^[\s\S]*?[.!?。！？](?=\s|$)|^[\s\S]*?[。！？\n]/u;

export class Announcer {
  #region;

  /** `region` is an element with aria-live. */
  constructor(region) {
    this.#region = region;
  }

  /** Say `text` after what is being said. */
  say(text) {
    if (!text.trim()) return;
    const line = document.createElement("p");
    line.textContent = text;
    this.#region.append(line);
    // What has been said need not be found again by those who read the page piece by piece.
    while (this.#region.childElementCount > 3) this.#region.firstElementChild.remove();
  }
}

/** Cuts a text that grows into sentences. */
export class Sentences {
  #said = 0;

  /** The sentences of `text` that have become whole since the last call; with `isComplete` the rest as well. */
  next(text, isComplete) {
    const sentences = [];
    for (;;) {
      const rest = text.slice(this.#said);
      const sentence = SENTENCE.exec(rest)?.[0];
      // A full stop at the very end may turn out to be that of "3.5".
      if (!sentence || (sentence.length === rest.length && !isComplete)) break;
      sentences.push(sentence.trim());
      this.#said += sentence.length;
    }
    if (isComplete && this.#said < text.length) {
      sentences.push(text.slice(this.#said).trim());
      this.#said = text.length;
    }
    return sentences.filter(Boolean);
  }
}
