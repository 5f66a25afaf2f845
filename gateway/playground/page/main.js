// The playground: tabs for the tools around one picture, and what they share.

import { Announcer } from "./announcer.js";
import { ChatPanel } from "./chat.js";
import { Deployment } from "./deployment.js";
import { DrawPanel } from "./draw.js";
import { exampleList, pictureOf } from "./examples.js";
import { FindPanel } from "./find.js";
import { Gateway } from "./gateway.js";
import { Highlight } from "./highlight.js";
import { Kept } from "./kept.js";
import { KeyDialog } from "./key_dialog.js";
import { Marks } from "./marks.js";
import { Stage } from "./stage.js";
import { setUpTabs } from "./tabs.js";
import { setUpThemeSwitch } from "./theme.js";
import { Trace } from "./trace.js";

const parts = Object.fromEntries([...document.querySelectorAll("[id]")].map((node) => [node.id, node]));
const key = new Kept("sessionStorage", "superlink.api_key");
const gateway = new Gateway(key);
const announcer = new Announcer(parts.announcements);
const highlight = new Highlight();
const marks = new Marks(parts.board, announcer);
const deployment = new Deployment(gateway);
const trace = new Trace(parts.trace);
const stage = new Stage(parts, {
  announcer,
  highlight,
  marks,
  skeletons: (phrase) => deployment.bonesOf(phrase),
});
const keyDialog = new KeyDialog(parts["key-button"], parts["key-dialog"], key, () => deployment.lookAtModel());

const page = {
  gateway,
  stage,
  announcer,
  highlight,
  askForKey: () => keyDialog.open(),
  /** Show a run on the stage and in the trace, null: none; and `picture` where it is to be one that the run made. */
  show(run, picture = null) {
    stage.showRun(run, picture);
    trace.show(run);
    for (const panel of Object.values(panels)) panel.setShown(run);
  },
};

const panels = {
  chat: new ChatPanel(parts["panel-chat"], page),
  detect: new FindPanel("detect", parts["panel-detect"], page),
  segment: new FindPanel("segment", parts["panel-segment"], page),
  pose: new FindPanel("pose", parts["panel-pose"], page),
  generate: new DrawPanel("generate", parts["panel-generate"], page),
  edit: new DrawPanel("edit", parts["panel-edit"], page),
};
let mode = "chat";
let shownServices = "";

function choose(next) {
  mode = next;
  const panel = panels[mode];
  stage.setTools(panel.tools, panel.isBrush);
  stage.setFirstRegion(panel.firstRegion);
  // A run about another picture than the one on the stage would come as a surprise.
  page.show(panel.run?.concerns(stage.input) ? panel.run : null);
}

async function tryExample(example) {
  const panel = panels[mode];
  panel.cancel();
  try {
    const picture = await pictureOf(example);
    stage.setInput(picture ?? (panel.needsPicture ? stage.input : null));
  } catch {
    parts["file-problem"].textContent = "The example's image could not be loaded. Check that the gateway runs.";
    return;
  }
  panel.fill(example);
  stage.setMarks(example.marks ?? []);
  await panel.submit();
}

function showDeployment() {
  const { state, reason, model, needsKey } = deployment;
  const text = { asking: "Connecting", ready: model || "Ready", "not ready": reason, away: reason }[state];
  parts.deployment.dataset.state = state;
  if (parts["deployment-text"].textContent !== text) parts["deployment-text"].textContent = text;
  keyDialog.show(needsKey);
  const served = JSON.stringify(deployment.services);
  if (served === shownServices) return;
  shownServices = served;
  for (const [name, panel] of Object.entries(panels)) {
    const examples = exampleList(name, tryExample, (service) => deployment.has(service));
    panel.offer(examples, panel.service !== null && !deployment.has(panel.service));
  }
}

setUpThemeSwitch(parts["theme-button"]);
setUpTabs(parts.tabs, choose);
stage.addEventListener("input", () => page.show(null));
// On a phone the words are a screen away from the picture.
highlight.addEventListener("held", () => parts.mat.scrollIntoView({ block: "nearest" }));
deployment.addEventListener("change", showDeployment);
showDeployment();
choose(mode);
deployment.watch();
