"""What a reader of build/site would trip over: `python .ci/site/check.py` says what, and where.

- every link, anchor and picture of every page leads somewhere, and nothing but a link names another host
- in Chromium: pages load without an error or a request to another host, formulas are drawn, the search finds,
  an inspector answers a click, and axe finds nothing serious, in light and dark, wide and narrow
"""

import functools
import os
import re
import shutil
import sys
import threading
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlsplit

SITE = Path(__file__).parents[2] / "build" / "site"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --disable-dev-shm-usage"
FLAGS += " --host-resolver-rules=MAP*~NOTFOUND,EXCLUDE127.0.0.1"
LOADED = {"script": "src", "link": "href", "img": "src", "iframe": "src", "source": "src", "object": "data"}
LOOKED_AT = ["index", "notebooks/index", "notebooks/10_token_inspector", "inspectors"]
LOOKED_AT += ["reference", "search"]
# axe reads every letter of a page: on a long one the first parts stand for the others
SHORTER = "document.querySelectorAll('section > section:nth-of-type(n+4), dl.py ~ dl.py').forEach(e => e.remove())"


class Page(HTMLParser):
    """The anchors of a page, what it links to and what it loads."""

    def __init__(self, text: str):
        super().__init__()
        self.anchors, self.links, self.loads, self.bare = {"", "top"}, [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.anchors.add(given.get("id") or given.get("name") or "")
        if tag == "a" and "href" in given:
            self.links.append(given["href"] or "")
        if given.get(LOADED.get(tag)) and given.get("rel") not in ("canonical", "search"):
            self.loads.append(given[LOADED[tag]])
        if tag == "img" and not given.get("alt"):
            self.bare.append(given.get("src"))


def links() -> list[str]:
    """What is wrong with the files alone."""
    files = [file for file in sorted(SITE.rglob("*.html")) if "_static" not in file.parts]  # the theme's templates
    pages = {file: Page(file.read_text(encoding="utf-8")) for file in files}
    wrong = []
    for file, page in pages.items():
        place = file.relative_to(SITE)
        wrong += [f"{place}: a picture without a text: {source}" for source in page.bare]
        for target in page.loads + page.links:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                if target in page.loads and parts.scheme != "data":
                    wrong.append(f"{place}: loads {target}")
                continue
            path, anchor = map(unquote, urldefrag(target.partition("?")[0]))
            led = (file.parent / path).resolve() if path else file
            if not led.is_file() or (led in pages and anchor not in pages[led].anchors):
                wrong.append(f"{place}: leads nowhere: {target}")
    for sheet in SITE.rglob("*.css"):
        if re.search(r"""(@import|url\()\s*["']?(https?:)?//""", sheet.read_text(encoding="utf-8")):
            wrong.append(f"{sheet.relative_to(SITE)}: loads another address")
    return wrong


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


def visited(chromium, base: str, scheme: str, width: int) -> list[str]:
    """What is wrong with the pages of LOOKED_AT in a window of this kind."""
    from axe_playwright_python.sync_playwright import Axe

    wrong, axe, place = [], Axe(), {}
    page = chromium.new_page(color_scheme=scheme, viewport={"width": width, "height": 900})

    def note(what: str) -> None:
        wrong.append(f"{place['name']}, {scheme}, {width} px: {what}")

    page.on("request", lambda r: r.url.startswith((base, "data:", "blob:")) or note(f"asks {r.url}"))
    page.on("response", lambda r: r.status < 400 or note(f"{r.status} {r.url}"))
    page.on("pageerror", lambda error: note(str(error)))
    page.on("console", lambda message: message.type == "error" and note(message.text))
    for name in LOOKED_AT:
        place["name"] = name
        page.goto(f"{base}/{name}.html" + "?q=plausibility" * (name == "search"), wait_until="networkidle")
        if page.locator(".math:not(:has(svg)), mjx-container :is([data-mml-node=merror], [fill=red])").count():
            note("a formula is not drawn, or drawn as an error")
        if page.evaluate("document.documentElement.scrollWidth > innerWidth"):
            note("is wider than the window")
        if width < 400:
            page.locator(".primary-toggle:visible").click()
            if not page.locator("dialog[open] nav a:visible").count():
                note("the menu does not open")
            page.keyboard.press("Escape")
        if name == "search" and not page.locator("#search-results li").count():
            note("the search finds nothing")
        if name == "inspectors":
            frame = page.frame_locator("iframe").first
            before = frame.locator(".said").inner_text()
            frame.locator(".token[data-position='3']").click()
            if frame.locator(".said").inner_text() == before:
                note("an inspector does not answer")
        page.evaluate(SHORTER)
        for found in axe.run(page, options={"preload": False}).response["violations"]:
            if found["impact"] in ("serious", "critical"):
                note(f"{found['id']}: " + "; ".join(" ".join(map(str, node["target"])) for node in found["nodes"][:3]))
    page.close()
    return wrong


def seen(base: str) -> list[str]:
    """What is wrong in a browser."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS.split())
        return visited(chromium, base, "light", 1100) + visited(chromium, base, "dark", 360)


def main() -> int:
    wrong = links()
    if CHROMIUM:
        server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=SITE))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        wrong += seen(f"http://127.0.0.1:{server.server_port}")
    elif os.environ.get("CDLEARN_REQUIRE_BROWSER") == "1":
        wrong.append("CDLEARN_REQUIRE_BROWSER=1 and there is no Chromium: apt-get install chromium")
    print("\n".join(wrong) or f"the site is sound: {len(list(SITE.rglob('*.html')))} pages")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
