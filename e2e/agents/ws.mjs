// Drives `ws` from npm as the tests say; see agent_test.go for the protocol.
import readline from "node:readline";
import WebSocket from "ws";

const sockets = new Map();
const emit = (event) => process.stdout.write(JSON.stringify(event) + "\n");

function open({ id, url }) {
  const socket = new WebSocket(url, ["tocsin.v1"]);
  sockets.set(id, socket);
  socket.on("open", () => emit({ id, event: "open", text: socket.protocol }));
  socket.on("message", (data, binary) => emit({ id, event: binary ? "binary" : "text", text: data.toString() }));
  socket.on("close", (code, reason) => emit({ id, event: "close", code, text: reason.toString() }));
  socket.on("error", (error) => emit({ id, event: "error", text: error.message }));
}

for await (const line of readline.createInterface({ input: process.stdin })) {
  const command = JSON.parse(line);
  switch (command.op) {
    case "open":
      setTimeout(open, command.after_ms, command);
      break;
    case "send":
      sockets.get(command.id).send(command.text);
      break;
    case "close":
      sockets.get(command.id).close(1000);
      break;
  }
}
process.exit(0);
