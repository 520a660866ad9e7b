"""Drives Debian's python3-websockets as the tests say; see agent_test.go for the protocol."""

import asyncio
import json
import sys

import websockets

sockets = {}


def emit(**event):
    print(json.dumps(event), flush=True)


async def run(id, url, after_ms):
    await asyncio.sleep(after_ms / 1000)
    try:
        async with websockets.connect(url, subprotocols=["tocsin.v1"]) as socket:
            sockets[id] = socket
            emit(id=id, event="open", text=socket.subprotocol or "")
            try:
                async for message in socket:
                    emit(id=id, event="text" if isinstance(message, str) else "binary", text=str(message))
            except websockets.ConnectionClosed:
                pass
            await socket.wait_closed()
            emit(id=id, event="close", code=socket.close_code, text=socket.close_reason or "")
    except Exception as error:
        emit(id=id, event="error", text=str(error))


async def main():
    loop = asyncio.get_running_loop()
    stdin = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(stdin), sys.stdin)
    tasks = set()
    while line := await stdin.readline():
        command = json.loads(line)
        if command["op"] == "open":
            tasks.add(asyncio.create_task(run(command["id"], command["url"], command["after_ms"])))
        elif command["op"] == "send":
            await sockets[command["id"]].send(command["text"])
        elif command["op"] == "close":
            await sockets[command["id"]].close(1000)


asyncio.run(main())
