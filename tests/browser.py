"""A headless Chromium driven by its DevTools protocol over a pipe: needs no package and no second program."""

import fcntl
import json
import os
import select
import shutil
import signal
import time
from base64 import b64decode
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
RESTING_FRAMES = 5  # a page that has followed a link scrolls a moment later
PATIENCE_S = 60


def find() -> str | None:
    """A Chromium or Chrome of this machine."""
    return next(filter(None, map(shutil.which, NAMES)), None)


@contextmanager
def running(executable: str, profile: Path) -> Iterator["Browser"]:
    """A browser with a new profile; it ends with the block."""
    ours, theirs = os.pipe(), os.pipe()
    into, out_of = (fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 10) for fd in (ours[0], theirs[1]))
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", f"--user-data-dir={profile}"]
    quiet = [(os.POSIX_SPAWN_OPEN, fd, os.devnull, os.O_WRONLY, 0) for fd in (1, 2)]
    pipes = [(os.POSIX_SPAWN_DUP2, into, 3), (os.POSIX_SPAWN_DUP2, out_of, 4)]  # where Chromium looks for them
    pid = os.posix_spawn(executable, [executable, *flags], os.environ, file_actions=[*quiet, *pipes], setsid=True)
    for fd in (ours[0], theirs[1], into, out_of):
        os.close(fd)
    try:
        yield Browser(ours[1], theirs[0])
    finally:
        os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(ours[1])
        os.close(theirs[0])


class Browser:
    """Commands go in and answers and events come out, each ended by a zero byte."""

    def __init__(self, commands: int, answers: int) -> None:
        self.commands, self.answers = commands, answers
        self.sent = 0
        self.received = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """The browser's answer to one command; events that come before it are kept."""
        self.sent += 1
        command = {"id": self.sent, "method": method, "params": parameters} | (
            {"sessionId": session} if session else {}
        )
        data = json.dumps(command).encode() + b"\0"
        while data:
            data = data[os.write(self.commands, data) :]
        while (message := self._next()).get("id") != self.sent:
            self.events.append(message)
        assert "error" not in message, f"{method}: {message['error']}"
        return message["result"]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.received:
            assert select.select([self.answers], [], [], PATIENCE_S)[0], "the browser does not answer"
            received = os.read(self.answers, 1 << 20)
            assert received, "the browser has ended"
            self.received += received
        message, _, self.received = self.received.partition(b"\0")
        return json.loads(message)

    def open(self, file: Path, width: int = 1280, height: int = 900, dark: bool = False, link: str = "") -> "Page":
        """A new page that shows `file`, as opened from the disk; below 600 pixels it is a phone; `link`: its #…"""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        page = Page(self, self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            page.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        page.call("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        page.call("Emulation.setEmulatedMedia", features=[scheme])
        page.call("Page.navigate", url=file.as_uri() + link)
        page.wait("document.readyState === 'complete' && location.protocol === 'file:'")
        return page


class Page:
    """One page of the browser."""

    def __init__(self, browser: Browser, session: str) -> None:
        self.browser, self.session = browser, session

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command about this page."""
        return self.browser.call(method, self.session, **parameters)

    def run(self, expression: str) -> Any:
        """The value of a JavaScript expression, of a promise when it is settled, as if the reader had just clicked."""
        options = {"returnByValue": True, "awaitPromise": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", expression=expression, **options)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the JavaScript condition holds."""
        end = time.monotonic() + PATIENCE_S
        while not self.run(condition):
            assert time.monotonic() < end, f"it never came to {condition}"
            time.sleep(0.02)

    def click(self, selector: str) -> None:
        """With the mouse, in the middle of the element, which is scrolled to first and has come to rest."""
        box = self.run(
            f"""new Promise(done => {{
                const element = document.querySelector({json.dumps(selector)});
                let frames = 0, last = "";
                const look = () => {{
                    element.scrollIntoView({{block: "center", behavior: "instant"}});
                    const {{x, y, width, height}} = element.getBoundingClientRect();
                    const middle = [x + width / 2, y + height / 2];
                    frames = String(middle) === last ? frames + 1 : 0;
                    last = String(middle);
                    frames < {RESTING_FRAMES} ? requestAnimationFrame(look) : done(middle);
                }};
                look();
            }})"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=box[0], y=box[1], button="left", clickCount=1)

    def type(self, selector: str, text: str) -> None:
        """Into the field, key by key."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        for character in text:
            self.call("Input.dispatchKeyEvent", type="char", text=character)

    def choose(self, selector: str, value: str) -> None:
        """An option of a list, by its value."""
        where = f"document.querySelector({json.dumps(selector)})"
        self.run(f"{where}.value = {json.dumps(value)}, {where}.dispatchEvent(new Event('input', {{bubbles: true}})), "
                 f"{where}.dispatchEvent(new Event('change', {{bubbles: true}}))")  # fmt: skip

    def texts(self, selector: str) -> list[str]:
        """Of each element, whether it is in view or not."""
        return self.run(f"[...document.querySelectorAll({json.dumps(selector)})].map((e) => e.textContent.trim())")

    def complaints(self) -> list[dict[str, Any]]:
        """Errors and warnings of the console, exceptions, and what the page's own policy kept from running."""
        self.run("new Promise(requestAnimationFrame)")
        ours = [event for event in self.browser.events if event.get("sessionId") == self.session]
        kinds = {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}
        return [event for event in ours if event["method"] in kinds]

    def requests(self) -> list[str]:
        """Addresses the page asked for."""
        self.run("new Promise(requestAnimationFrame)")
        return [
            event["params"]["request"]["url"]
            for event in self.browser.events
            if event.get("sessionId") == self.session and event["method"] == "Network.requestWillBeSent"
        ]

    def screenshot(self, path: Path, whole: bool = False) -> None:
        """A PNG of what is seen, or of the whole page."""
        path.write_bytes(b64decode(self.call("Page.captureScreenshot", captureBeyondViewport=whole)["data"]))
