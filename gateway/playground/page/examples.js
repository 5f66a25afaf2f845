// Requests that work at one click, about scenes that come with the page and that the profile "tiny" is good at.

import { element } from "./elements.js";
import { Picture } from "./picture.js";

const DOG = { kind: "point", points: [[191, 46]] };

// `needs` are the deployed services without which an example of the chat says nothing.
const EXAMPLES = {
  chat: [
    { sample: "tour", prompt: "Find the butterflies and segment the cow.", needs: ["detection", "segmentation"] },
    { sample: "tour", prompt: "Find the keypoints of the person.", needs: ["pose"] },
    { sample: "dogs", prompt: "How many dogs are there?", needs: ["detection"] },
    { sample: "animals", prompt: "Are there more giraffes than cats?", needs: ["detection"] },
    { sample: "dogs", prompt: "图中有几只狗？", needs: ["detection"] },
    { sample: "dogs", prompt: "Mask this.", marks: [DOG], needs: ["segmentation"] },
    { sample: null, prompt: "Draw a cat beside a pine tree.", needs: ["diffusion"] },
    { sample: "tour", prompt: "Make the butterflies red.", needs: ["diffusion"] },
  ],
  detect: [
    { sample: "dogs", prompt: "dog, skull" },
    { sample: "animals", prompt: "giraffe, cat, horse" },
    { sample: "dogs", prompt: "the rightmost dog", isPhrase: true },
    { sample: "tour", prompt: "蝴蝶，奶牛" },
  ],
  segment: [
    { sample: "tour", prompt: "cow, butterfly" },
    { sample: "dogs", prompt: "", marks: [DOG], title: "What is marked" },
    { sample: "dogs", prompt: "skull, cat" },
  ],
  pose: [
    { sample: "tour", prompt: "person" },
    { sample: "tour", prompt: "person", keypoints: "nose, left wrist, right wrist", title: "Nose and wrists of the person" },
  ],
  generate: [
    { sample: null, prompt: "a cat beside a pine tree", seed: "1" },
    { sample: null, prompt: "two butterflies above a cow", seed: "1" },
  ],
  edit: [
    { sample: "tour", prompt: "make the butterflies red", seed: "1" },
    { sample: "dogs", prompt: "remove the skull", seed: "1" },
  ],
};

/** The list of a mode's examples; `choose` gets the one that is pressed, `isServed` says whether a service is deployed. */
export function exampleList(mode, choose, isServed) {
  return EXAMPLES[mode]
    .filter(({ needs = [] }) => needs.every(isServed))
    .map((example) => {
      const { sample, prompt, title } = example;
      const image = sample && element("img", { src: addressOf(sample), alt: "", loading: "lazy" });
      const text = element("span", { lang: /\p{Script=Han}/u.test(prompt) ? "zh" : null }, title ?? prompt);
      const button = element("button", { type: "button", class: "example", onclick: () => choose(example) }, image, text);
      return element("li", {}, button);
    });
}

/** The picture of an example, or null where it needs none. */
export async function pictureOf({ sample }) {
  if (sample === null) return null;
  const response = await fetch(addressOf(sample));
  return Picture.read(await response.blob(), `${sample}.png`);
}

function addressOf(sample) {
  return new URL(`samples/${sample}.png`, import.meta.url).href;
}
