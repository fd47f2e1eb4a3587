// OpenAI's Agents client, unmodified: speaks a recording twice, hears two answers, prints what it knows as JSON.
//   node talk.mjs ws://127.0.0.1:8000/v1/realtime question.pcm [max_output_tokens]      (int16, 24 kHz)
import fs from "node:fs";
import { OpenAIRealtimeWebSocket, RealtimeAgent, RealtimeSession } from "@openai/agents-realtime";

const [url, recording, tokens] = process.argv.slice(2);
const agent = new RealtimeAgent({ name: "omni", instructions: "Be brief." });
const model = new URL(url).searchParams.get("model");
const config = tokens ? { providerData: { max_output_tokens: Number(tokens) } } : {};
const session = new RealtimeSession(agent, { transport: new OpenAIRealtimeWebSocket({ url }), model, config });
const pcm = fs.readFileSync(recording);
const heard = { bytes: 0, turns: 0, errors: [] };

function speak() {
  for (let at = 0; at < pcm.length; at += 4800) session.sendAudio(new Uint8Array(pcm.subarray(at, at + 4800)).buffer);
}

function tell() {
  const history = session.history.map((item) => [item.role, item.status]);
  const words = session.history.filter((item) => item.role === "assistant").map((item) => item.content[0].transcript);
  console.log(JSON.stringify({ ...heard, history, words }));
  session.close();
  process.exit(0);
}

session.on("error", (error) => heard.errors.push(JSON.stringify(error)));
session.on("audio", (event) => (heard.bytes += event.data.byteLength));
session.transport.on("turn_done", () => {
  heard.turns += 1;
  if (heard.turns === 1) speak();
  else setImmediate(tell);
});
await session.connect({ apiKey: "any" });
speak();
