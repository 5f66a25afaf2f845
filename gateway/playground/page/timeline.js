// When what happened in a run, as rows of a timeline: pure data, from what the API sends and when it arrived here.

/**
 * Rows `{token, service, about, start, end, parts, state}`, times in milliseconds since the request was sent. `start` is
 * null where the API says how long something took and not when; `end` is null while it runs.
 */
export function timelineOf(run) {
  const request = {
    token: "",
    service: "gateway",
    about: "the whole request",
    start: 0,
    end: run.isRunning ? null : run.elapsed,
    parts: [],
    state: run.status,
  };
  const happened = [...writing(run), ...calls(run), ...readings(run)].sort((first, second) => first.start - second.start);
  return [request, ...happened, ...(run.isStream ? [] : unplaced(run))];
}

/** Milliseconds until the first text or result arrived, or null. */
export function firstResultAt(run) {
  return run.log.find(({ kind }) => kind === "text" || kind === "call")?.at ?? null;
}

/** The time of every service, `{service, phases: [{phase, milliseconds}]}`, in the order of the API. */
export function timesByService(run) {
  const services = new Map();
  for (const { service, phase, milliseconds } of run.timings) {
    if (!services.has(service)) services.set(service, []);
    services.get(service).push({ phase, milliseconds });
  }
  return [...services].map(([service, phases]) => ({ service, phases }));
}

/** The model's rounds: each begins when it has read the results of the one before. */
function writing(run) {
  const rows = [];
  let start = 0;
  let last = null;
  const close = (end) => {
    const about = rows.length ? `writes on, round ${rows.length + 1}` : "writes";
    if (last !== null) rows.push({ token: "", service: "mllm", about, start, end, parts: [], state: "done" });
  };
  for (const { at, kind } of run.log) {
    if (kind === "text") last = at;
    if (kind === "observation") {
      close(last);
      start = at;
      last = null;
    }
  }
  const isWriting = run.isRunning && [...run.calls.values()].every((call) => call.status !== "running");
  close(isWriting ? null : last);
  return rows;
}

function calls(run) {
  if (!run.isStream) return [];
  return [...run.calls.values()].map((call) => {
    const entries = run.log.filter((entry) => entry.kind === "call" && entry.id === call.id);
    return {
      token: [...new Set(call.phrases.map(({ route }) => route).filter(Boolean))].join(" "),
      service: call.tool || "no tool",
      about: call.phrases.map(({ phrase }) => phrase).join(", "),
      start: entries[0].at,
      end: call.status === "running" ? (run.isRunning ? null : run.elapsed) : entries.at(-1).at,
      parts: call.timings ?? [],
      state: call.status === "running" && !run.isRunning ? run.status : call.status,
    };
  });
}

function readings(run) {
  return run.log
    .filter(({ kind }) => kind === "observation")
    .map(({ at }) => ({
      token: "",
      service: "mllm",
      about: "reads the results",
      start: at,
      end: at,
      parts: [],
      state: "done",
    }));
}

/** Of endpoints that answer in one piece: how long each service took, as its caller saw it. */
function unplaced(run) {
  return run.timings
    .filter(({ phase }) => phase === "wall")
    .map(({ service, milliseconds }) => ({
      token: "",
      service,
      about: service === "mllm" ? "reads the phrases" : "looks for them",
      start: null,
      end: milliseconds,
      parts: run.timings.filter((entry) => entry.service === service && entry.phase !== "wall"),
      state: "done",
    }));
}
