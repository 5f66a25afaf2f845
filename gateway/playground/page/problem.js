// What went wrong, as the API says it (application/problem+json), and what a person can do about it.

const KEY_CODES = ["missing_api_key", "invalid_api_key", "revoked_api_key"];

const ADVICE = {
  missing_api_key: "Enter your API key with the button “API key”, then try again.",
  invalid_api_key: "Check the key under “API key”, or ask for a new one.",
  revoked_api_key: "Ask for a new key and enter it under “API key”.",
  quota_exceeded: "Try again tomorrow, or use another key.",
  unknown_tool: "This deployment does not have the tool. Ask for something else, or deploy its worker.",
  unknown_skeleton: "Name something that the tool knows, or name the keypoints yourself.",
  empty_prompt: "Write what you want, then try again.",
  prompt_too_long: "Shorten the text, or start a new conversation.",
  too_many_images: "Start a new conversation: this one holds as many images as the model can see.",
  too_many_regions: "Remove some marks, or start a new conversation.",
  no_image: "Choose an image first.",
  image_missing: "Choose an image first.",
  unsupported_image: "Choose a JPEG, PNG or WebP file.",
  image_too_large: "Choose a smaller image.",
  body_too_large: "Choose a smaller image.",
  deadline_exceeded: "Try again; the services may have been busy.",
  connection_lost: "Check that the gateway runs and that you are connected, then try again.",
  unexpected_response: "Something between this page and the gateway answered. Ask whoever runs it.",
};

export class Problem extends Error {
  /** `fields` are those of a problem document. */
  constructor(fields) {
    super(fields.detail ?? fields.message ?? "");
    this.code = fields.code ?? "unexpected_response";
    this.title = fields.title ?? this.code.replaceAll("_", " ");
    this.status = fields.status ?? null;
    this.service = fields.service ?? "";
    this.requestId = fields.request_id ?? "";
    this.isRetryable = Boolean(fields.retryable);
    this.retryAfterMs = fields.retry_after_ms ?? null;
  }

  /** Of a response that is no success. */
  static async of(response) {
    const requestId = response.headers.get("x-request-id") ?? "";
    try {
      const document = await response.json();
      if (document.code) return new Problem(document);
    } catch {
      // Not the gateway's: a proxy answers in other formats.
    }
    return new Problem({
      code: "unexpected_response",
      title: "Unexpected response",
      status: response.status,
      detail: `The answer has status ${response.status} and is not in the gateway's format.`,
      request_id: requestId,
      retryable: response.status >= 500,
    });
  }

  /** Of a connection that could not be made, or that broke off. */
  static lost(detail) {
    return new Problem({ code: "connection_lost", title: "Connection lost", detail, retryable: true });
  }

  get isAboutKey() {
    return KEY_CODES.includes(this.code);
  }

  /** What to do. */
  get advice() {
    const known = ADVICE[this.code];
    if (known) return known;
    if (this.retryAfterMs !== null) return `Try again in ${Math.ceil(this.retryAfterMs / 1000)} s.`;
    if (this.isRetryable) return "Try again in a moment.";
    if (this.status !== null && this.status < 500) return "Change the request as the message says.";
    return "Trying again will not help. Give the request id to whoever runs this deployment; its logs have the reason.";
  }
}
