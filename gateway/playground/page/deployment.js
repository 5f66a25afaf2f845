// What the gateway serves: which services are ready, which tools there are, what they know.

const AGAIN_AFTER_MS = 5000;

export class Deployment extends EventTarget {
  #gateway;
  #skeletons = [];

  /** "asking", "ready", "not ready" or "away". */
  state = "asking";
  /** Names of the deployed services, or null while nobody knows. */
  services = null;
  /** Why it is not ready. */
  reason = "";
  /** The served model's name; empty while unknown. */
  model = "";
  needsKey = false;

  constructor(gateway) {
    super();
    this.#gateway = gateway;
  }

  /** Ask what there is, again and again until all of it is ready. */
  async watch() {
    for (;;) {
      await this.#lookAtServices();
      await this.lookAtModel();
      if (this.state === "ready") return;
      await new Promise((resolve) => setTimeout(resolve, AGAIN_AFTER_MS));
    }
  }

  /** Ask for the model, which may need an API key. */
  async lookAtModel() {
    try {
      const { response, document } = await this.#gateway.look("v1/models");
      this.needsKey = response.status === 401;
      if (response.ok) {
        const [model] = document.data;
        this.model = model.id;
        this.#skeletons = model.superlink.tools.flatMap((tool) => tool.skeletons ?? []);
      }
    } catch {
      // What is shown of the services says it.
    }
    this.#changed();
  }

  /** Whether the tool `service` is deployed; true while nobody knows. */
  has(service) {
    return this.services === null || this.services.includes(service);
  }

  /** Pairs of names of the keypoints that a drawing connects, of what `phrase` is about. */
  bonesOf(phrase) {
    const words = phrase.toLowerCase();
    return this.#skeletons.find(({ names }) => names.some((name) => isAbout(words, name.toLowerCase())))?.bones ?? [];
  }

  async #lookAtServices() {
    try {
      const { document } = await this.#gateway.look("readyz");
      const services = document.services ?? [];
      this.services = services.length > 1 || document.status === "ready" ? services.map(({ name }) => name) : null;
      this.state = document.status === "ready" ? "ready" : "not ready";
      this.reason = services.filter(({ ready }) => !ready).map(({ name }) => `${name} is not ready`).join(", ");
    } catch {
      this.state = "away";
      this.reason = "The gateway does not answer";
    }
    this.#changed();
  }

  #changed() {
    this.dispatchEvent(new Event("change"));
  }
}

/** Whether `name` is among `words`: "person" is in "the leftmost person". Chinese has no spaces to keep words apart. */
function isAbout(words, name) {
  const isLatin = (character) => /[a-z]/.test(character ?? "");
  for (let at = words.indexOf(name); at >= 0; at = words.indexOf(name, at + 1)) {
    if (!isLatin(words[at - 1]) && !isLatin(words[at + name.length])) return true;
  }
  return false;
}
