// Calls of the REST API. The page's address says where it is, so that a proxy may serve the gateway under any path.

import { readEvents } from "./event_stream.js";
import { Problem } from "./problem.js";

export class Gateway {
  #key;

  /** `key` is a Kept value; an empty one is not sent. */
  constructor(key) {
    this.#key = key;
  }

  /** The JSON of a GET, whatever its status; throws Problem where there is none. */
  async look(path) {
    const response = await this.#fetch(path, { headers: this.#headers() });
    if (response.headers.get("content-type")?.includes("json")) return { response, document: await response.json() };
    throw await Problem.of(response);
  }

  /** The JSON that answers `body`, FormData or an object. Throws Problem, or AbortError when `signal` says so. */
  async ask(path, body, signal) {
    const response = await this.#post(path, body, signal);
    return { requestId: requestIdOf(response), document: await reading(() => response.json()) };
  }

  /** The documents that answer `body`, as they arrive. Throws as `ask` does, and while they arrive. */
  async stream(path, body, signal) {
    const response = await this.#post(path, body, signal);
    return { requestId: requestIdOf(response), documents: documentsOf(response.body) };
  }

  async #post(path, body, signal) {
    const headers = this.#headers();
    if (!(body instanceof FormData)) headers["content-type"] = "application/json";
    const content = body instanceof FormData ? body : JSON.stringify(body);
    const response = await this.#fetch(path, { method: "POST", headers, body: content, signal });
    if (!response.ok) throw await Problem.of(response);
    return response;
  }

  #headers() {
    return this.#key.value ? { authorization: `Bearer ${this.#key.value}` } : {};
  }

  #fetch(path, options) {
    return reading(() => fetch(new URL(path, document.baseURI), { ...options, cache: "no-store", credentials: "omit" }));
  }
}

/** What `read` gives; a network failure, which browsers report as TypeError, becomes a Problem that says `detail`. */
async function reading(read, detail = "The gateway does not answer.") {
  try {
    return await read();
  } catch (error) {
    throw error instanceof TypeError ? Problem.lost(detail) : error;
  }
}

async function* documentsOf(body) {
  const events = readEvents(body);
  for (;;) {
    const next = await reading(() => events.next(), "The connection broke off in the middle of the answer.");
    if (next.done) throw Problem.lost("The answer ended before it was complete.");
    if (next.value === "[DONE]") return;
    const document = JSON.parse(next.value);
    if (document.error) throw new Problem(document.error);
    yield document;
  }
}

function requestIdOf(response) {
  return response.headers.get("x-request-id") ?? "";
}
