"""A headless Chromium, driven by its own driver over the plain WebDriver protocol."""

import base64
import json
import re
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"  # the key of WebDriver's references to elements
KEYS = {"ArrowDown": "\ue015", "ArrowLeft": "\ue012", "ArrowRight": "\ue014", "Enter": "\ue007", "Home": "\ue011"}
KEYS |= {"Tab": "\ue004"}


class Browser:
    """A context: the browser and its driver end with it.  `pytest.skip` where one of them is not installed.

    arguments: of the browser's command line
    """

    def __init__(self, *arguments: str, width: int = 1000, height: int = 700):
        driver = shutil.which("chromedriver")
        binary = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not driver or not binary:
            pytest.skip("no browser: install Debian's packages chromium and chromium-driver")
        self._driver = subprocess.Popen([driver, "--port=0"], stdout=subprocess.PIPE, text=True)
        said = (re.search(r"successfully on port (\d+)", line) for line in self._driver.stdout)
        port = next(found[1] for found in said if found)
        self._base = f"http://127.0.0.1:{port}/session"
        arguments += ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")
        arguments += (f"--window-size={width},{height}",)
        options = {"goog:chromeOptions": {"binary": binary, "args": arguments}}
        try:
            self._base += "/" + self._ask("POST", "", {"capabilities": {"alwaysMatch": options}})["sessionId"]
        except BaseException:
            self._driver.terminate()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._ask("DELETE", "")
        self._driver.terminate()
        self._driver.wait()

    def _ask(self, method: str, path: str, body: dict | None = None):
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self._base + path, data, {"Content-Type": "application/json"}, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return json.load(response)["value"]
        except urllib.error.HTTPError as error:
            raise AssertionError(json.load(error)["value"]["message"]) from None

    def open(self, address: str) -> None:
        self._ask("POST", "/url", {"url": address})

    def run(self, script: str):
        """What `script`, the body of a function, returns."""
        return self._ask("POST", "/execute/sync", {"script": script, "args": []})

    def wait(self, expression: str, seconds: float = 30):
        """The value of a JavaScript expression, once it is true."""
        end = time.monotonic() + seconds
        while not (value := self.run(f"return {expression}")):
            assert time.monotonic() < end, f"{expression} is still {value!r}; the page: {self.text()}"
            time.sleep(0.02)
        return value

    def text(self, selector: str = "body") -> str:
        return self.run(f"return document.querySelector({json.dumps(selector)}).innerText")

    def click(self, selector: str) -> None:
        found = self._ask("POST", "/element", {"using": "css selector", "value": selector})
        self._ask("POST", f"/element/{found[ELEMENT]}/click", {})

    def press(self, *keys: str) -> None:
        """Names of KEYS, or text to type where the focus is."""
        keys = [key for name in keys for key in ([KEYS[name]] if name in KEYS else name)]
        actions = [{"type": kind, "value": key} for key in keys for kind in ("keyDown", "keyUp")]
        self._ask("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def prefer(self, scheme: str) -> None:
        """'light' or 'dark', as the system's setting would."""
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        self.chrome("Emulation.setEmulatedMedia", features=features)

    def chrome(self, command: str, **params):
        return self._ask("POST", "/goog/cdp/execute", {"cmd": command, "params": params})

    def screenshot(self) -> bytes:
        """A PNG."""
        return base64.b64decode(self._ask("GET", "/screenshot"))
