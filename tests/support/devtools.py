"""A page in headless Chromium, driven by its DevTools protocol over two pipes: no server, no further package."""

import base64
import json
import os
import select
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--remote-debugging-pipe",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars",
)  # fmt: skip


class Tab:
    """One page. errors: what its console and its requests had to complain about."""

    def __init__(self, process: subprocess.Popen, to: int, come: int) -> None:
        self._process, self._to, self._come = process, to, come
        self._sent, self._read, self._session = 0, b"", None
        self.errors: list[str] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers. Events that come before it are looked at for errors."""
        self._sent += 1
        message = {"id": self._sent, "method": method, "params": params}
        message |= {"sessionId": self._session} if self._session else {}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._sent:
                assert "error" not in answer, answer
                return answer["result"]

    def open(self, url: str, *, width: int = 1280, height: int = 900) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 500
        )
        self.call("Page.navigate", url=url)

    def run(self, expression: str) -> Any:
        """The value of an expression, awaited."""
        how = {"returnByValue": True, "awaitPromise": True}
        return self.call("Runtime.evaluate", expression=expression, **how)["result"].get("value")

    def until(self, expression: str, *, seconds: float = 60.0) -> Any:
        """The expression's value once it is true."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := self.run(expression):
                return found
            time.sleep(0.1)
        raise AssertionError(f"never came true: {expression}; {self.errors}")

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            ready, _, _ = select.select([self._come], [], [], 60)
            got = os.read(self._come, 2**20) if ready else b""
            assert got, "the browser is gone"
            self._read += got
        line, _, self._read = self._read.partition(b"\0")
        message = json.loads(line)
        self._look(message.get("method"), message.get("params", {}))
        return message

    def _look(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(json.dumps(params["exceptionDetails"])[:500])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(json.dumps(params["args"])[:500])
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(f"{params['entry']['text']} {params['entry'].get('url', '')}"[:500])


@contextmanager
def tab(browser: str, folder: Path) -> Iterator[Tab]:
    """A new page of a browser that starts and ends with it. folder: for its profile."""
    (theirs_in, to), (come, theirs_out) = os.pipe(), os.pipe()
    shell = f'exec "$0" "$@" 3<&{theirs_in} 4>&{theirs_out}'
    words = ["bash", "-c", shell, browser, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
    process = subprocess.Popen(
        words, pass_fds=(theirs_in, theirs_out), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    os.close(theirs_in), os.close(theirs_out)
    try:
        yield Tab(process, to, come)
    finally:
        os.close(to), os.close(come)
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(120)
        process.kill()
