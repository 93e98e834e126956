"""A headless Chromium, spoken to over the WebDriver protocol with nothing but the standard library."""

import base64
import json
import re
import shutil
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never by a proxy


class Browser:
    """One window. Sizes are those of the page's view in CSS pixels."""

    def __init__(self, server: str) -> None:
        self._server = server
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        wanted = {"browserName": "chrome", "goog:chromeOptions": {"args": arguments}}
        answer = self._ask("POST", "/session", {"capabilities": {"alwaysMatch": wanted}})
        self._session = f"/session/{answer['sessionId']}"

    def open(self, path: Path, fragment: str = "", *, width: int, height: int = 900) -> None:
        """Opens a file. The size is forced as a phone's is: a window cannot be as narrow."""
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
        self._devtools("Emulation.setDeviceMetricsOverride", metrics)
        self._ask("POST", f"{self._session}/url", {"url": "about:blank"})  # else no new load
        self._ask("POST", f"{self._session}/url", {"url": path.absolute().as_uri() + fragment})

    def run(self, script: str, *arguments: Any) -> Any:
        """The value that a script's `return` gives."""
        body = {"script": script, "args": list(arguments)}
        return self._ask("POST", f"{self._session}/execute/sync", body)

    def click(self, selector: str) -> None:
        """A real click in the middle of an element, as a reader's; fails where it is covered."""
        self._ask("POST", f"{self._session}/element/{self._find(selector)}/click", {})

    def type(self, selector: str, text: str) -> None:
        """Keys pressed with an element focused."""
        body = {"text": text}
        self._ask("POST", f"{self._session}/element/{self._find(selector)}/value", body)

    def wait(self, script: str) -> None:
        """Until the expression is true, five seconds at most."""
        self._ask(
            "POST",
            f"{self._session}/execute/async",
            {
                "script": "const done = arguments[0], end = Date.now() + 5000; (function again() {"
                f"if ({script}) done(true); else if (Date.now() > end) done(false);"
                "else setTimeout(again, 50); })();",
                "args": [],
            },
        )
        assert self.run(f"return Boolean({script})"), script

    def errors(self) -> list[str]:
        """What the page has complained of since last asked."""
        entries = self._ask("POST", f"{self._session}/se/log", {"type": "browser"})
        return [entry["message"] for entry in entries]

    def picture(self, path: Path) -> None:
        """The whole page, from top to bottom."""
        shot = self._devtools("Page.captureScreenshot", {"captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(shot["data"]))

    def close(self) -> None:
        """Ends the browser."""
        self._ask("DELETE", self._session, None)

    def _find(self, selector: str) -> str:
        body = {"using": "css selector", "value": selector}
        found: dict[str, str] = self._ask("POST", f"{self._session}/element", body)
        return next(iter(found.values()))

    def _devtools(self, command: str, parameters: dict[str, Any]) -> Any:
        body = {"cmd": command, "params": parameters}
        return self._ask("POST", f"{self._session}/goog/cdp/execute", body)

    def _ask(self, method: str, path: str, body: dict[str, Any] | None) -> Any:
        request = urllib.request.Request(
            self._server + path, None if body is None else json.dumps(body).encode(), method=method
        )
        try:
            with _DIRECT.open(request, timeout=120) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(f"{path}: {error.read().decode()[:500]}") from error


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser for one test file; skips where Chromium or its driver is not installed."""
    driver = shutil.which("chromedriver")
    if driver is None or shutil.which("chromium") is None:
        pytest.skip("needs the system's packages chromium and chromium-driver")
    process = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
    starting = threading.Timer(60, process.kill)
    starting.start()
    try:
        assert process.stdout is not None
        port = next(
            found[1]
            for line in process.stdout
            if (found := re.search(r"successfully on port (\d+)", line))
        )
        starting.cancel()
        browser = Browser(f"http://127.0.0.1:{port}")
        try:
            yield browser
        finally:
            browser.close()
    finally:
        process.terminate()
        process.wait(60)
