// One value in the browser's storage. Where storage is switched off the value lives as long as the page.

export class Kept {
  #storage;
  #name;
  #value;

  /** `storage` is "localStorage" or "sessionStorage". */
  constructor(storage, name) {
    this.#name = name;
    try {
      this.#storage = window[storage];
      this.#value = this.#storage.getItem(name) ?? "";
    } catch {
      this.#storage = null;
      this.#value = "";
    }
  }

  get value() {
    return this.#value;
  }

  set value(value) {
    this.#value = value;
    if (value) this.#storage?.setItem(this.#name, value);
    else this.#storage?.removeItem(this.#name);
  }
}
