// One request and what has come back of it so far. Everything that shows a run listens for its event "change".

import { Picture } from "./picture.js";
import { Problem } from "./problem.js";

const HUES = 8;
// Longer texts in the raw events are images or masks.
const LONGEST_RAW_TEXT = 160;
const MOST_RAW_EVENTS = 1000;

export class Run extends EventTarget {
  #abort = new AbortController();
  #started = performance.now();
  #hues = new Map();

  /** "running", then "done", "failed" or "cancelled". */
  status = "running";
  text = "";
  /** Tool calls by id, as the API shows them, but for images: these are `{picture, seed}`. */
  calls = new Map();
  observations = [];
  timings = [];
  usage = null;
  requestId = "";
  problem = null;
  /** "length" when a limit cut the answer off. */
  finishReason = null;
  /** Whether results came as they were ready, so that the page knows when. */
  isStream = false;
  /** What arrived, and when: `{at, kind, …}`, times in milliseconds since the request was sent. */
  log = [];
  /** The last documents that arrived, `{at, text}`, for those who want to see them. */
  raw = [];
  endedAt = null;

  /**
   * `mode` is the tab; `prompt` what was asked, in words; `picture` what the tools look at, or null; `marks` what was
   * drawn on it; `firstRegion` the number of the first mark.
   */
  constructor({ mode, prompt, picture, marks = [], firstRegion = 1 }) {
    super();
    Object.assign(this, { mode, prompt, picture, marks, firstRegion });
  }

  get signal() {
    return this.#abort.signal;
  }

  /** Milliseconds since the request was sent, until it ended. */
  get elapsed() {
    return this.endedAt ?? performance.now() - this.#started;
  }

  get isRunning() {
    return this.status === "running";
  }

  /** Do the request; `work` fills this run in. How it ends is in `status` and `problem`; nothing is thrown. */
  async perform(work) {
    try {
      await work();
      this.status = "done";
    } catch (error) {
      if (this.#abort.signal.aborted) {
        this.status = "cancelled";
      } else {
        if (!(error instanceof Problem)) console.error(error);
        this.status = "failed";
        this.problem = error instanceof Problem ? error : unforeseen(error);
      }
    }
    this.endedAt = performance.now() - this.#started;
    this.#note(this.status);
  }

  /** Close the connection, which cancels the work in every service. */
  cancel() {
    this.#abort.abort();
  }

  addText(text) {
    this.text += text;
    this.#note("text", { length: this.text.length });
  }

  /** A tool call, new or changed. */
  setCall(call) {
    this.calls.set(call.id, { ...call, phrases: call.phrases.map(withPictures) });
    this.#note("call", { id: call.id, status: call.status, progress: call.progress ?? null });
  }

  addObservation(observation) {
    this.observations.push(observation);
    this.#note("observation");
  }

  /** A document as it arrived, but for long texts. */
  keep(document) {
    this.raw.push({ at: this.elapsed, text: short(document) });
    if (this.raw.length > MOST_RAW_EVENTS) this.raw.shift();
  }

  /** All phrases that tools were called for, in order, each with its colour. */
  groups() {
    return [...this.calls.values()].flatMap((call) =>
      call.phrases.map((phrase, index) => ({
        key: `${call.id}/${index}`,
        call,
        phrase,
        hue: this.#hueOf(call, phrase),
        isKeypoint: isKeypoint(call, phrase),
      })),
    );
  }

  /** The pictures that tools made: `{picture, seed, group}`. */
  made() {
    return this.groups().flatMap((group) => (group.phrase.images ?? []).map((image) => ({ ...image, group })));
  }

  /** Whether it says something about `picture`: looked at it, made it, or needed none. */
  concerns(picture) {
    return this.picture === null || this.picture === picture || this.made().some((made) => made.picture === picture);
  }

  /** Whether a tool is at work that may make a picture. */
  get isDrawing() {
    return this.isRunning && (this.mode === "generate" || [...this.calls.values()].some(({ status }) => status === "running"));
  }

  /** What a slow tool says of its progress, `{done, total}` or null. */
  get progress() {
    return [...this.calls.values()].map((call) => call.progress).find(Boolean) ?? null;
  }

  #note(kind, facts = {}) {
    this.log.push({ at: this.elapsed, kind, ...facts });
    this.dispatchEvent(new Event("change"));
  }

  /** One colour a phrase, whichever tools look for it; keypoints have that of the thing which they belong to. */
  #hueOf(call, phrase) {
    const words = (isKeypoint(call, phrase) ? call.phrases[0].phrase : phrase.phrase).toLowerCase();
    if (!this.#hues.has(words)) this.#hues.set(words, this.#hues.size % HUES);
    return this.#hues.get(words);
  }
}

/** Only calls for poses are made of groups with two routes: the things first, then the names of their keypoints. */
function isKeypoint(call, phrase) {
  return Boolean(phrase.route) && phrase.route !== call.phrases[0].route;
}

/** An image of the API's results as `{picture, seed}`: its bytes are kept once, and not as text. */
export function madeImage({ seed, ...result }) {
  return { seed, picture: result.picture ?? Picture.fromResult(result, `superlink-${seed}.png`) };
}

function withPictures(phrase) {
  return phrase.images ? { ...phrase, images: phrase.images.map(madeImage) } : phrase;
}

function short(document) {
  return JSON.stringify(document, (_, value) =>
    typeof value === "string" && value.length > LONGEST_RAW_TEXT ? `${value.slice(0, LONGEST_RAW_TEXT)}…` : value,
  );
}

function unforeseen(error) {
  return new Problem({ code: "page_error", title: "The page failed", detail: `${error.name}: ${error.message}` });
}
