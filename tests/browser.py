"""A headless Chromium with the network cut, spoken to over its debugging socket; only for tests that look at pages."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tornado.websocket import WebSocketClientConnection, websocket_connect

CHROMIUM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--hide-scrollbars", "--remote-debugging-port=0",
    "--host-resolver-rules=MAP * ~NOTFOUND",
]  # fmt: skip


class Browser:
    """``look(page, width, script)``: open the page in a window of that width and return what the script says."""

    def __init__(self, endpoint: str):
        self.endpoint = endpoint

    def look(self, page: Path, width: int, script: str, *, timeout: float = 60) -> Any:
        return asyncio.run(asyncio.wait_for(self._look(page.as_uri(), width, script), timeout))

    async def _look(self, url: str, width: int, script: str) -> Any:
        socket = await websocket_connect(self.endpoint, max_message_size=1 << 28)
        try:
            self.count = 0
            target = (await self._ask(socket, "Target.createTarget", url="about:blank"))["targetId"]
            session = (await self._ask(socket, "Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
            ask = lambda method, **kw: self._ask(socket, method, session, **kw)  # noqa: E731
            await ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
            await ask("Page.navigate", url=url)
            for _ in range(200):
                ready = await ask("Runtime.evaluate", expression="document.readyState + '|' + location.href")
                if ready["result"]["value"].startswith("complete|file:"):
                    break
                await asyncio.sleep(0.1)
            settled = "(window.MathJax && MathJax.startup ? MathJax.startup.promise : Promise.resolve())"
            wait = f"{settled}.then(() => new Promise(r => setTimeout(r, 500))).then(() => ({script})())"
            answer = await ask("Runtime.evaluate", expression=wait, awaitPromise=True, returnByValue=True)
            if "exceptionDetails" in answer:
                raise RuntimeError(json.dumps(answer["exceptionDetails"]))
            await self._ask(socket, "Target.closeTarget", targetId=target)
            return answer["result"].get("value")
        finally:
            socket.close()
            while await socket.read_message() is not None:  # the other side's goodbye
                pass

    async def _ask(
        self, socket: WebSocketClientConnection, method: str, session: str | None = None, **params: Any
    ) -> Any:
        self.count += 1
        number = self.count
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        await socket.write_message(json.dumps(message))
        while True:
            text = await socket.read_message()
            if text is None:
                raise ConnectionError("the browser went away")
            answer = json.loads(text)
            if answer.get("id") == number:
                if "error" in answer:
                    raise RuntimeError(answer["error"])
                return answer["result"]


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """A running browser with an empty profile; ended on the way out."""
    assert CHROMIUM
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        process = subprocess.Popen(
            [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", "about:blank"], stderr=subprocess.PIPE, text=True
        )
        try:
            assert process.stderr
            endpoint = next(line.split(" on ")[1].strip() for line in process.stderr if "DevTools listening on" in line)
            yield Browser(endpoint)
        finally:
            process.terminate()
            process.wait(10)
            if process.stderr:
                process.stderr.close()
