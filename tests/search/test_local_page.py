"""The local page in a real browser."""

import http.server
import io
import json
import threading

import numpy as np
import pytest
from PIL import Image
from planted import embedding, picture
from served import Reader, index_photos, serving
from webdriver import Browser

from smke_jax.search.site import PAGE

SCRIPT = "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script>"
NAMES = {f"{i}.png": i for i in range(60)} | {f"trip/{i}.png": i for i in range(60, 130)}
NAMES |= {SCRIPT.replace("/", "") + ".png": 500}
FIRST = "document.querySelector('.photo')"
COUNT = "document.querySelectorAll('.photo').length"
TEXTS = (
    "#message",
    ".caption span",
    ".caption b",
    ".caption button",
    "button.strong",
    ".help",
    "label",
    "#q",
    "select",
)
FOCUS = "[...document.querySelectorAll('.photo')].indexOf(document.activeElement)"


@pytest.fixture(scope="module")
def browser():
    with Browser("--host-resolver-rules=MAP rebound.example 127.0.0.1") as browser:
        yield browser


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page")
    index_photos(folder / "photos", folder / "index", NAMES)
    return folder


@pytest.fixture(scope="module")
def server(made):
    with serving(made / "index", Reader()) as server:
        yield server


@pytest.fixture
def page(browser, server):
    """The browser with the page open, the newest photos shown."""
    browser.open(server.address)
    browser.wait(FIRST)
    return browser


def ask(page: Browser, text: str) -> None:
    page.click("#q")
    page.press(text, "Enter")
    page.wait(f"document.title === {json.dumps(text)}")


def names(page: Browser) -> list[str]:
    return page.run("return [...document.querySelectorAll('.photo img')].map((image) => image.alt)")


def choose(page: Browser, field: str, value: str) -> None:
    page.run(f"const field = document.getElementById('{field}'); field.value = '{value}';"
             "field.dispatchEvent(new Event('change'))")  # fmt: skip


def test_a_query_finds_the_right_picture(page):
    ask(page, "photo 77")
    assert names(page)[0] == "77.png" and page.text("#message").endswith("photos of 131 answer “photo 77”")
    page.wait("document.querySelector('.photo img').naturalWidth === 8")  # the planted photos are 8 pixels wide
    assert page.run(f"return {FIRST}.getAttribute('aria-label')") == (
        "77.png, 2023-11-14, score 1.000, find similar photos"
    )
    assert page.text(".caption").startswith("1.000 2023-11-14\n77.png")


def test_arrow_keys_and_enter(page):
    ask(page, "photo 7")
    columns = page.run("return getComputedStyle(document.getElementById('grid')).gridTemplateColumns.split(' ').length")
    assert 3 <= columns <= 6
    page.press("ArrowDown")
    assert page.run(f"return {FOCUS}") == 0
    for key, place in (("ArrowRight", 1), ("ArrowDown", 1 + columns), ("ArrowLeft", columns), ("Home", 0)):
        page.press(key)
        assert page.run(f"return {FOCUS}") == place
    page.press("Tab")  # to its other button, and no further photo
    assert page.run("return document.activeElement.textContent") == "View"
    second = names(page)[1]
    page.press("ArrowRight", "Enter")
    page.wait("document.title.startsWith('Like ')")
    assert page.run("return document.title") == f"Like {second}" and page.run(f"return {FOCUS}") == 0
    page.run("history.back()")
    page.wait("document.title === 'photo 7'")
    page.run("document.activeElement.blur()")
    page.press("/")
    assert page.run("return document.activeElement.id") == "q"


def test_a_click_shows_similar_ones(page):
    ask(page, "photo 30")
    page.click(".photo")
    page.wait("document.title === 'Like 30.png'")
    cosines = {name: float(embedding(picture(30)) @ embedding(picture(seed))) for name, seed in NAMES.items()}
    ranked = sorted(cosines, key=cosines.get, reverse=True)
    assert [name.rpartition("/")[2] for name in ranked[1:6]] == names(page)[:5]
    assert page.text("#message") == "130 photos, the most similar first"
    assert page.run("return document.getElementById('q').value") == ""
    page.click("#like-off")
    page.wait("document.title === 'Photos'")


def test_scrolling_loads_more(page):
    assert page.run(f"return {COUNT}") == PAGE
    page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.wait(f"{COUNT} > {PAGE}")
    for _ in range(3):
        page.run("window.scrollTo(0, document.body.scrollHeight)")
    page.wait(f"{COUNT} === {len(NAMES)}")
    assert len(set(names(page))) == len(NAMES) and page.run("return document.getElementById('more').hidden")


def test_a_picture_alone(page):
    page.click(".caption button")
    page.wait("document.querySelector('#dialog-photo img').naturalWidth === 8")
    assert page.text("#dialog-path").endswith("/photos/0.png, 2023-11-14 22:13:20")
    page.click("#dialog-like")
    page.wait("document.title === 'Like 0.png' && !document.getElementById('dialog').open")


def test_folders_and_dates(page):
    choose(page, "folder", "trip")
    page.wait("document.getElementById('message').textContent === '70 photos, the newest first'")
    ask(page, "photo 7")
    assert "of 70" in page.text("#message")
    choose(page, "since", "2023-11-15")
    page.wait("document.getElementById('message').textContent.startsWith('No photo lies there')")
    page.run("location.reload()")  # the address holds the search
    page.wait("document.getElementById('since').value === '2023-11-15'")
    assert page.run("return document.getElementById('folder').value") == "trip"


def test_a_text_without_an_answer_offers_all(page, monkeypatch):
    monkeypatch.setattr("smke_jax.search.cutoff.ABOVE_CHANCE", 100.0)
    ask(page, "photo 7")
    assert page.text("#message") == "No photo of 131 answers “photo 7”" and not names(page)
    page.click("#others")
    page.wait(FIRST)
    assert names(page)[0] == "7.png" and page.run(f"return {FOCUS}") == 0


def test_scripts_in_names_and_queries_are_text(page):
    ask(page, "photo 500")
    assert names(page)[0] == SCRIPT.replace("/", "") + ".png"
    page.wait("document.querySelector('.photo img').naturalWidth === 8")
    page.click(".photo")
    page.wait("document.title.startsWith('Like ')")
    page.open(page.run("return location.origin") + "/?q=" + SCRIPT.replace(" ", "+") + "+photo+1&all=1")
    page.wait(FIRST)
    assert SCRIPT in page.text("#message") and page.run("return document.title") == f"{SCRIPT} photo 1"


def test_no_other_script_runs(page):
    """The policy is a second lock, should a text ever become a part of the page."""
    found = page.run(
        "window.owned = 0; const refused = [];"
        "for (const html of ['<img src=x onerror=\"owned = 1\">', '<script>owned = 1</scr' + 'ipt>'])"
        "  try { document.body.innerHTML = html } catch (error) { refused.push(error.name) }"
        "const script = document.createElement('script');"
        "try { script.textContent = 'owned = 1'; document.body.append(script) }"
        "catch (error) { refused.push(error.name) }"
        "return [window.owned, ...refused]"
    )
    assert found == [0, "TypeError", "TypeError", "TypeError"]


def test_a_picture_that_is_gone_has_a_placeholder(browser, tmp_path):
    index_photos(tmp_path / "photos", tmp_path / "index", {f"{i}.png": i for i in range(3)})
    with serving(tmp_path / "index", Reader()) as server:
        (tmp_path / "photos/1.png").write_bytes(b"no photo")
        browser.open(server.address)
        text = browser.wait("document.querySelector('.gone')?.textContent")
        assert text == "1.png: the photo cannot be shown: not an image file"
        (tmp_path / "photos/0.png").unlink()
        browser.click("li:first-child .caption button")
        text = browser.wait("document.querySelector('#dialog-photo .gone')?.textContent")
        assert text == "0.png: the photo cannot be shown: No such file or directory"
        browser.click("#dialog-close")
        browser.click("li:last-child .caption button")
        browser.wait("document.querySelector('#dialog-photo img')?.naturalWidth === 8")
        browser.open(server.address)
        browser.wait(FIRST)
        assert browser.text("#notes") == "left out because their files are gone: 1; run `smke index` again"
        server.shutdown()
        server.server_close()
        browser.click("#q")
        browser.press("dog", "Enter")
        browser.wait("document.getElementById('message').textContent.includes('is `smke serve` still running?')")


def test_a_long_query_gets_a_clear_answer(page):
    for count, why in ((10_000, "the text has 10,000 characters: 1,000 are the most"), (70_000, "Too Long")):
        page.run(f"const box = document.getElementById('q'); box.value = 'x'.repeat({count}); box.form.requestSubmit()")
        page.wait(f"document.getElementById('message').textContent.includes('{why}')")
    assert page.run(f"return {COUNT}") == 0


def brightness(page: Browser) -> float:
    data = page.screenshot()
    return float(np.asarray(Image.open(io.BytesIO(data)).convert("L")).mean())


def contrast(page: Browser, selector: str) -> float:
    """Of a text with what lies behind it, as WCAG 2 counts it."""
    colours = page.run(
        f"let node = document.querySelector('{selector}'); const text = getComputedStyle(node).color;"
        "const back = (node) => getComputedStyle(node).backgroundColor;"
        "while (back(node) === 'rgba(0, 0, 0, 0)') node = node.parentNode; return [text, back(node)]"
    )
    channels = [np.array([float(x) for x in colour[4:-1].split(",")]) / 255 for colour in colours]
    linear = [np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4) for x in channels]
    low, high = sorted(float(x @ [0.2126, 0.7152, 0.0722]) for x in linear)
    return (high + 0.05) / (low + 0.05)


def test_light_and_dark_differ_and_can_be_read(page):
    found = {}
    for scheme in ("light", "dark"):
        page.prefer(scheme)
        found[scheme] = brightness(page)
        for selector in TEXTS:
            assert contrast(page, selector) >= 4.5, (scheme, selector)
    assert found["dark"] < 110 < 140 < found["light"]


def test_a_screen_reader_finds_a_name_for_everything(page):
    nodes = page.chrome("Accessibility.getFullAXTree")["nodes"]
    seen = {}
    for node in nodes:
        if not node["ignored"]:
            seen.setdefault(node["role"]["value"], []).append(node.get("name", {}).get("value", ""))
    for role, least in {"button": 2 * PAGE, "searchbox": 1, "Date": 2, "combobox": 1, "list": 1, "image": PAGE}.items():
        assert len(seen[role]) >= least and all(seen[role]), role
    assert {"status", "search", "main", "heading"} <= seen.keys() and len(seen["listitem"]) == PAGE


def test_a_narrow_window_needs_no_scrolling_sideways(page):
    page.chrome("Emulation.setDeviceMetricsOverride", width=360, height=640, deviceScaleFactor=1, mobile=True)
    try:
        assert page.run("return document.documentElement.scrollWidth") <= 360
    finally:
        page.chrome("Emulation.clearDeviceMetricsOverride")


def test_another_site_and_another_name_get_nothing(browser, server):
    """Another port is another origin, but the same site to a browser."""
    key = server.site.search({})["hits"][0]["key"]
    attack = (
        "<script>window.found = [];"
        f"for (const mode of ['cors', 'no-cors']) fetch('{server.address}about', {{mode}}).then("
        "  async (answer) => found.push(`${answer.type} ${await answer.text()}`), (error) => found.push(error.name));"
        "for (const kind of ['img', 'script', 'iframe']) { const node = document.createElement(kind);"
        "  node.onload = () => found.push(`${kind} loaded`); node.onerror = () => found.push(`${kind} failed`);"
        f"  node.src = '{server.address}' + {{img: 'photo/{key}', script: 'about', iframe: ''}}[kind];"
        "  document.documentElement.append(node); }</script>"
    )

    class Evil(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html")
            self.end_headers()
            self.wfile.write(attack.encode())

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Evil) as evil:
        threading.Thread(target=evil.serve_forever, daemon=True).start()
        browser.open(f"http://127.0.0.1:{evil.server_address[1]}/")
        browser.wait("window.found?.length === 5")
        found = sorted(browser.run("return found"))
        # A frame that was refused loads the browser's own page of errors.
        assert found == ["TypeError", "TypeError", "iframe loaded", "img failed", "script failed"]
        assert browser.run("return document.querySelector('iframe').contentDocument") is None
        evil.shutdown()
    browser.open(f"http://rebound.example:{server.server_address[1]}/")
    assert f"open the page as {server.address}" in browser.text() and not browser.run(f"return {FIRST}")
