// A problem as a person sees it: what happened, its code, and what to do.

import { element } from "./elements.js";
import { Problem } from "./problem.js";

/**
 * `given` is a Problem, or the fields of a problem document. `actions` are buttons that help. Screen readers are told at
 * once.
 */
export function problemCard(given, title = null, actions = []) {
  const problem = given instanceof Problem ? given : new Problem(given);
  const facts = [
    problem.status === null ? null : element("span", {}, `Status ${problem.status}`),
    problem.service ? element("span", {}, `from ${problem.service}`) : null,
    problem.requestId ? element("span", {}, "request ", element("code", {}, problem.requestId)) : null,
  ];
  return element(
    "div",
    { class: "problem", role: "alert" },
    element(
      "p",
      {},
      element("strong", {}, title ?? problem.title),
      " ",
      element("code", { class: "problem-code" }, problem.code),
    ),
    element("p", {}, problem.message),
    element("p", { class: "problem-advice" }, problem.advice),
    actions.length ? element("p", { class: "actions" }, actions) : null,
    element("p", { class: "problem-facts" }, facts),
  );
}
