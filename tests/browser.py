"""A headless Chromium, driven through the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import select
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
OPTIONS = (
    *("--headless=new", "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu"),
    *("--no-first-run", "--disable-background-networking", "--disable-dev-shm-usage"),
    *("--disable-component-update", "--disable-sync", "--disable-extensions", "--no-zygote"),
)
PATIENCE = 120.0  # seconds; the machine may be busy
KEYS = {"ArrowRight": 39, "ArrowLeft": 37, "Home": 36, "End": 35, "Tab": 9, "Enter": 13}


def executable() -> str | None:
    """The path of an installed browser."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A browser's one page, and what it reported: console messages, errors and requests."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.buffer, self.number, self.session = b"", 0, ""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The result of a command of the protocol."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self.read()
            if answer.get("id") == self.number:
                assert "error" not in answer, answer["error"]
                return answer["result"]

    def read(self) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self.buffer:
            ready, _, _ = select.select([self.answers], [], [], PATIENCE)
            assert ready, "the browser does not answer"
            self.buffer += os.read(self.answers, 1 << 20)
        text, _, self.buffer = self.buffer.partition(b"\0")
        message = json.loads(text)
        if "method" in message:
            self.events.append(message)
        return message

    def wait_for(self, event: str) -> None:
        """Read until an event has come."""
        while not any(one["method"] == event for one in self.events):
            self.read()

    def open(self, path: Path, width: int = 1200, height: int = 900) -> None:
        """Show a file in a fresh page."""
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self.session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)
        self.resize(width, height)
        self.events.clear()
        self.call("Page.navigate", url=path.resolve().as_uri())
        self.wait_for("Page.loadEventFired")

    def resize(self, width: int, height: int) -> None:
        """Another size of the window."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **size)

    def value(self, expression: str) -> Any:
        """What an expression of JavaScript is in the page."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def click(self, selector: str) -> None:
        """A press of the mouse in the middle of an element."""
        x, y = self.place(selector)
        self.mouse("mousePressed", x, y)
        self.mouse("mouseReleased", x, y)

    def place(self, selector: str) -> tuple[float, float]:
        """The middle of an element, scrolled into view."""
        x, y = self.value(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)});"
            "one.scrollIntoView({block: 'center'}); const box = one.getBoundingClientRect();"
            "return [box.x + box.width / 2, box.y + box.height / 2]; })()"
        )
        return x, y

    def mouse(self, kind: str, x: float, y: float) -> None:
        """An event of the mouse, its left button held or going up or down."""
        options = {"button": "left", "buttons": 1, "clickCount": 1}
        self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **options)

    def press(self, key: str, times: int = 1) -> None:
        """A key, down and up."""
        for _ in range(times):
            for kind in ("rawKeyDown", "keyUp"):
                code = {"key": key, "code": key, "windowsVirtualKeyCode": KEYS[key]}
                self.call("Input.dispatchKeyEvent", type=kind, **code)

    def complaints(self) -> list[str]:
        """Console messages, log entries such as refused sources, and exceptions so far."""
        self.call("Runtime.evaluate", expression="0")  # what came before it has been read then
        kinds = {"Runtime.consoleAPICalled", "Log.entryAdded", "Runtime.exceptionThrown"}
        return [json.dumps(one["params"]) for one in self.events if one["method"] in kinds]

    def requests(self) -> list[str]:
        """The addresses that the page has asked for, without those that its policy stopped."""
        self.call("Runtime.evaluate", expression="0")
        failed = [one["params"] for one in self.events if one["method"] == "Network.loadingFailed"]
        stopped = {one["requestId"] for one in failed if one.get("blockedReason") == "csp"}
        sent = [one for one in self.events if one["method"] == "Network.requestWillBeSent"]
        sent = [one["params"] for one in sent if one["params"]["requestId"] not in stopped]
        return [one["request"]["url"] for one in sent]

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG file."""
        options = {"format": "png", "captureBeyondViewport": True}
        shot = self.call("Page.captureScreenshot", **options)["data"]
        path.write_bytes(base64.b64decode(shot))

    def pdf(self, path: Path) -> None:
        """The page as it is printed on A4."""
        options = {"paperWidth": 8.27, "paperHeight": 11.69, "printBackground": False}
        path.write_bytes(base64.b64decode(self.call("Page.printToPDF", **options)["data"]))


@contextmanager
def browsing(folder: Path) -> Iterator[Browser]:
    """A browser that keeps its profile in a folder and ends with the block."""
    path = executable()
    assert path is not None
    pipes = (*os.pipe(), *os.pipe())
    ends = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pipes]  # out of the way of 3, 4
    for end in pipes:
        os.close(end)
    commands, ours, answers, theirs = ends
    actions = [(os.POSIX_SPAWN_DUP2, commands, 3), (os.POSIX_SPAWN_DUP2, theirs, 4)]
    actions.append((os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0))
    words = [path, *OPTIONS, f"--user-data-dir={folder}", "about:blank"]
    process = os.posix_spawn(path, words, dict(os.environ), file_actions=actions, setpgroup=0)
    os.close(commands)
    os.close(theirs)
    try:
        yield Browser(ours, answers)
    finally:
        os.killpg(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(ours)
        os.close(answers)
        time.sleep(0.1)  # its helpers still write to the profile
