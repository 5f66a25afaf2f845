// The API key of deployments that need one. It stays in this browser tab: sessionStorage, and nothing else.

export class KeyDialog {
  #dialog;
  #button;
  #key;

  /** `button` opens `dialog`, in which the key is entered; `changed` is called when there is another one. */
  constructor(button, dialog, key, changed) {
    this.#dialog = dialog;
    this.#button = button;
    this.#key = key;
    const input = dialog.querySelector("input");
    const set = (value) => {
      key.value = value;
      dialog.close();
      this.show(false);
      changed();
    };
    button.addEventListener("click", () => this.open());
    dialog.querySelector("form").addEventListener("submit", (event) => {
      event.preventDefault();
      set(input.value.trim());
    });
    dialog.querySelector(".forget").addEventListener("click", () => set(""));
    dialog.querySelector(".close").addEventListener("click", () => dialog.close());
    this.show(false);
  }

  open() {
    this.#dialog.querySelector("input").value = this.#key.value;
    this.#dialog.querySelector(".forget").hidden = !this.#key.value;
    this.#dialog.showModal();
  }

  /** Say on the button whether there is a key, and whether one is `missing`. */
  show(missing) {
    const state = this.#key.value ? "set" : missing ? "needed" : "none";
    this.#button.dataset.state = state;
    this.#button.querySelector(".state").textContent = { set: "set", needed: "needed", none: "" }[state];
  }
}
