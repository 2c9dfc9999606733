"""A headless Chromium for tests of pages, over its debugging pipe: no driver, no package.

with Browser.start() as browser:                # or pytest.skip, where there is none
    browser.open("http://127.0.0.1:8000/", width=1200, height=900)
    browser.run("document.title")               # promises are awaited
    browser.drag((100, 100), (150, 120))
    browser.messages                            # of the console, errors and exceptions
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
SECONDS = 60.0


class Browser:
    def __init__(self, writer: int, reader: int) -> None:
        self.writer, self.reader, self.buffer = writer, reader, b""
        self.numbers = itertools.count(1)
        self.messages: list[str] = []
        self.requests: list[str] = []
        self.loaded = False
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    session: str | None = None

    @staticmethod
    def program() -> str | None:
        return next(filter(None, map(shutil.which, NAMES)), None)

    @classmethod
    @contextmanager
    def start(cls):
        program = cls.program()
        assert program is not None
        to_it, ours = os.pipe()
        theirs, from_it = os.pipe()
        with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:

            def descriptors() -> None:  # 3 is read and 4 is written by the browser
                high = (os.dup(to_it), os.dup(from_it))
                os.dup2(high[0], 3)
                os.dup2(high[1], 4)

            process = subprocess.Popen(
                [program, "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run",
                 "--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}",
                 "about:blank"],
                preexec_fn=descriptors, close_fds=False, start_new_session=True,
                stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            os.close(to_it)
            os.close(from_it)
            try:
                yield cls(ours, theirs)
            finally:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                os.close(ours)
                os.close(theirs)

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self.numbers)
        message = {"id": number, "method": method, "params": params}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._receive()
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]

    def _receive(self) -> dict[str, Any]:
        until = time.monotonic() + SECONDS
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.reader], [], [], max(0.0, until - time.monotonic()))
            assert ready, "the browser does not answer"
            part = os.read(self.reader, 1 << 20)
            assert part, "the browser has ended"
            self.buffer += part
        line, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(line)
        self._note(message.get("method"), message.get("params", {}))
        return message

    def _note(self, method: str | None, params: dict[str, Any]) -> None:
        if method == "Page.loadEventFired":
            self.loaded = True
        elif method == "Runtime.exceptionThrown":
            self.messages.append(json.dumps(params["exceptionDetails"]))
        elif method == "Runtime.consoleAPICalled":
            self.messages.append(json.dumps(params["args"]))
        elif method == "Log.entryAdded":
            self.messages.append(params["entry"]["text"])
        elif method == "Network.requestWillBeSent":
            self.requests.append(params["request"]["url"])

    def open(self, url: str, width: int = 1200, height: int = 900) -> None:
        self.size(width, height)
        self.loaded = False
        self.call("Page.navigate", url=url)
        while not self.loaded:
            self._receive()

    def size(self, width: int, height: int, *, dark: bool = False) -> None:
        """Of the window; below 600 it is a phone's."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height,
                  mobile=width < 600, deviceScaleFactor=1)  # fmt: skip
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def run(self, expression: str) -> Any:
        answer = self.call("Runtime.evaluate", expression=expression, awaitPromise=True,
                           returnByValue=True)  # fmt: skip
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, expression: str, seconds: float = SECONDS) -> None:
        until = time.monotonic() + seconds
        while not self.run(expression):
            assert time.monotonic() < until, f"still not so: {expression}"
            time.sleep(0.05)

    def click(self, place: tuple[float, float]) -> None:
        for kind in ("mousePressed", "mouseReleased"):
            self._mouse(kind, place, clickCount=1)

    def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
        self._mouse("mousePressed", start, clickCount=1)
        for share in (0.3, 0.6, 1.0):
            self._mouse(
                "mouseMoved", tuple(a + share * (b - a) for a, b in zip(start, end, strict=True))
            )
        self._mouse("mouseReleased", end, clickCount=1)

    def _mouse(self, kind: str, place: tuple[float, ...], **more: Any) -> None:
        x, y = place
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left",
                  buttons=0 if kind == "mouseReleased" else 1, **more)  # fmt: skip

    def press(self, key: str) -> None:
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)

    def middle(self, selector: str) -> tuple[float, float]:
        place = self.run(
            f"(() => {{ const e = document.querySelector({selector!r}); e.scrollIntoView({{block: "
            f"'center'}}); const r = e.getBoundingClientRect(); return [r.x + r.width / 2, "
            f"r.y + r.height / 2]; }})()"
        )
        return place[0], place[1]

    def picture(self, path: Path) -> None:
        """Of the whole page."""
        data = self.call("Page.captureScreenshot", captureBeyondViewport=True)["data"]
        path.write_bytes(base64.b64decode(data))
