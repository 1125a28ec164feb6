// Have a request queued and read its events, in Node without packages; a lost connection is read on.
//   WEIR_URL=http://127.0.0.1:8080 WEIR_KEY=weir_… node events.mjs
const url = process.env.WEIR_URL ?? "http://127.0.0.1:8080";
const model = process.env.WEIR_MODEL ?? "good";
const authorization = `Bearer ${process.env.WEIR_KEY}`;

async function submit(body, idempotencyKey) {
  const answer = await fetch(`${url}/v1/requests`, {
    method: "POST",
    headers: { authorization, "content-type": "application/json", "idempotency-key": idempotencyKey },
    body: JSON.stringify(body),
  });
  const told = await answer.json();
  if (!answer.ok) throw new Error(told.error.message);
  return told;
}

// Yields each event once and in order, up to the end.
async function* events(eventsUrl) {
  let last = -1;
  for (;;) {
    const headers = { authorization, accept: "text/event-stream" };
    if (last >= 0) headers["last-event-id"] = String(last);
    try {
      const answer = await fetch(url + eventsUrl, { headers });
      if (answer.status === 204) return;
      if (answer.ok) {
        let text = "";
        for await (const piece of answer.body.pipeThrough(new TextDecoderStream())) {
          text += piece;
          const frames = text.split("\n\n");
          text = frames.pop();
          for (const frame of frames) {
            const data = frame.split("\n").find((line) => line.startsWith("data: "));
            if (data === undefined) continue; // a heartbeat
            const event = JSON.parse(data.slice(6));
            if (event.seq <= last) continue;
            last = event.seq;
            yield event;
            if (["completed", "failed", "cancelled"].includes(event.type)) return;
          }
        }
      } else if (answer.status < 500 && answer.status !== 429) {
        throw new Error((await answer.json()).error.message, { cause: "refused" });
      }
    } catch (error) {
      if (error.cause === "refused") throw error;
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

const question = [{ role: "user", content: "What is 38 + 47?" }];
const request = await submit({ model, mode: "stream", max_tokens: 20, messages: question }, crypto.randomUUID());
console.log(request.request_id);
for await (const event of events(request.events_url)) {
  if (event.type === "token") process.stdout.write(event.text ?? "");
  else console.log(`\n[${event.seq} ${event.type}]`);
}
