// Drives the WebSocket of headless Chromium as the tests say, from a page that
// argv[2] serves; see agent_test.go for the protocol.
import readline from "node:readline";
import { chromium } from "playwright-core";

const emit = (event) => process.stdout.write(JSON.stringify(event) + "\n");

const browser = await chromium.launch({
  executablePath: "/usr/bin/chromium",
  args: ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking"],
});
const page = await browser.newPage();
await page.exposeFunction("emit", emit);
page.on("pageerror", (error) => emit({ event: "error", text: error.message }));
await page.goto(process.argv[2]);

// What runs in the browser.
await page.evaluate(() => {
  const sockets = new Map();
  const ops = {
    open({ id, url }) {
      const socket = new WebSocket(url, ["tocsin.v1"]);
      sockets.set(id, socket);
      socket.onopen = () => emit({ id, event: "open", text: socket.protocol });
      socket.onmessage = ({ data }) =>
        emit(typeof data === "string" ? { id, event: "text", text: data } : { id, event: "binary" });
      socket.onclose = ({ code, reason }) => emit({ id, event: "close", code, text: reason });
    },
    send({ id, text }) {
      sockets.get(id).send(text);
    },
    close({ id }) {
      sockets.get(id).close(1000);
    },
  };
  window.run = (command) => setTimeout(ops[command.op], command.after_ms, command);
});

for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  if (command.op === "see") {
    // What a person sees, told when it is there.
    page
      .waitForFunction((text) => document.body.innerText.includes(text), command.text, { timeout: 0 })
      .then(() => emit({ id: command.id, event: "seen" }), () => {});
  } else {
    await page.evaluate((command) => window.run(command), command);
  }
}
await browser.close();
process.exit(0);
