// Server-sent events from a response's body. EventSource cannot send a request with a body, hence this reader.

/** Yields the data of every event of `body`, a stream of bytes cut anywhere. */
export async function* readEvents(body) {
  let rest = "";
  let data = [];
  const reader = body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { value: text, done } = await reader.read();
    if (done) return;
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
    rest = lines.pop();
    for (const line of lines) {
      if (line === "") {
        if (data.length) yield data.join("\n");
        data = [];
      } else {
        const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
        if (field === "data") data.push(value);
      }
    }
  }
}
