// An image on this page: what a person chose, or what a tool made. Sizes are pixels of the upright image, as in the API.

// A browser keeps the bytes behind an address until it is told that nobody needs it: here, when the picture is gone.
const addresses = new FinalizationRegistry((url) => URL.revokeObjectURL(url));

export class Picture {
  #url = null;

  /** `blob` holds the file's bytes. */
  constructor(blob, name, width, height) {
    this.blob = blob;
    this.name = name;
    this.width = width;
    this.height = height;
  }

  /** The picture in a file that a person chose. Throws Error where this browser cannot show it. */
  static async read(blob, name) {
    const picture = new Picture(blob, name, 0, 0);
    const image = new Image();
    image.src = picture.url;
    try {
      await image.decode();
    } catch {
      throw new Error(`This browser cannot show “${name}”. Choose a JPEG, PNG or WebP file.`);
    }
    picture.width = image.naturalWidth;
    picture.height = image.naturalHeight;
    return picture;
  }

  /** A picture of the API's results: a PNG file in base64. */
  static fromResult(result, name) {
    const bytes = Uint8Array.from(atob(result.b64_json), (character) => character.charCodeAt(0));
    return new Picture(new Blob([bytes], { type: "image/png" }), name, result.width, result.height);
  }

  /** For elements that show it. It holds as long as something holds the picture. */
  get url() {
    if (this.#url === null) {
      this.#url = URL.createObjectURL(this.blob);
      addresses.register(this, this.#url);
    }
    return this.#url;
  }

  /** As the API's results have images: the other way around than `fromResult`. */
  async asResult(seed) {
    const [, encoded] = (await this.dataUrl()).split(",");
    return { b64_json: encoded, width: this.width, height: this.height, seed };
  }

  /** For requests in JSON. */
  dataUrl() {
    return new Promise((resolve, reject) => {
      const reader = new FileReader();
      reader.addEventListener("load", () => resolve(reader.result));
      reader.addEventListener("error", () => reject(reader.error));
      reader.readAsDataURL(this.blob);
    });
  }
}
