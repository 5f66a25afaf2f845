// Light or dark: as the system says, until the switch says otherwise. The page waits for this module before it is
// painted, so that it never flashes in the other one.

import { Kept } from "./kept.js";

const system = matchMedia("(prefers-color-scheme: dark)");
const chosen = new Kept("localStorage", "superlink.theme");

function isDark() {
  return chosen.value ? chosen.value === "dark" : system.matches;
}

function apply() {
  document.documentElement.dataset.theme = isDark() ? "dark" : "light";
}

/** Let `button` switch the theme. A choice that is what the system says is no choice: the page follows it again. */
export function setUpThemeSwitch(button) {
  const describe = () => button.setAttribute("aria-label", `Switch to the ${isDark() ? "light" : "dark"} theme`);
  button.addEventListener("click", () => {
    const dark = !isDark();
    chosen.value = dark === system.matches ? "" : dark ? "dark" : "light";
    apply();
    describe();
  });
  system.addEventListener("change", describe);
  describe();
}

system.addEventListener("change", apply);
apply();
