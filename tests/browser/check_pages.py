"""Open every page of the built book in headless Chromium and report what is wrong with it.

A fault is an error in the console, a failed request or one to another host, a formula or Markdown
that was not rendered, a broken image, a page wider than the window, text in a figure below nine
pixels, what axe-core calls serious or critical, or a search without hits.
"""

import argparse
import base64
import contextlib
import functools
import json
import shutil
import sys
import tempfile
import threading
import time
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

WIDTHS = {"desktop": 1280, "tablet": 768, "phone": 390}
PAGE_CHECKS = (Path(__file__).parent / "page_checks.js").read_text(encoding="utf-8")
LOOK_AT = "document.documentElement.dataset.theme = arguments[0]"  # light or dark
# A colour that still fades from one look to the other would be judged halfway.
STOP = "*, *::before, *::after { transition: none !important; animation: none !important }"
STILL = f"document.head.appendChild(document.createElement('style')).textContent = '{STOP}'"
RUN_AXE = """
const done = arguments[arguments.length - 1];
axe.run(document, {resultTypes: ["violations"]}).then(
  (result) => done(result.violations.map((v) => [v.impact, v.id, v.nodes.map((n) => n.html)])),
  (error) => done([["critical", String(error), ["axe"]]]));
"""
MATH_IS_SET = "return window.MathJax?.startup?.promise.then(() => true)"
SEARCH_WORD = "dormant"
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def served(folder):
    """Serve a folder on this machine; gives its address."""
    handler = functools.partial(QuietHandler, directory=str(folder))
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()


@contextlib.contextmanager
def chromium():
    """A headless Chromium with a fresh profile, which keeps a log of its network."""
    with tempfile.TemporaryDirectory() as profile:
        options = webdriver.ChromeOptions()
        options.binary_location = shutil.which("chromium")
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        browser = webdriver.Chrome(options=options, service=service)
        browser.set_script_timeout(180)  # axe reads the longest pages for a while
        try:
            browser.get("about:blank")
            browser.get_log("performance")  # forget what Chromium's own first page asked for
            yield browser
        finally:
            browser.quit()


def set_window(browser, width, height=900):
    """Give the window a size, which may be smaller than Chromium's smallest."""
    # Not as a mobile device: that would zoom out until a page that is too wide fits.
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def network_fault(method, event, home):
    """What is wrong with one event of the network, as a list of none or one sentence."""
    if method == "Network.requestWillBeSent":
        url = event["request"]["url"]
        if not url.startswith((home, "data:")):
            return [f"a request to elsewhere: {url}"]
    if method == "Network.responseReceived" and event["response"]["status"] >= 400:
        return [f"{event['response']['status']} for {event['response']['url']}"]
    if method == "Network.loadingFailed" and not event.get("canceled"):
        return [f"a request failed: {event['errorText']}"]
    return []


def network_faults(browser, home):
    """What the logs hold since they were last read: bad requests and messages of the console."""
    faults = []
    for entry in browser.get_log("performance"):
        message = json.loads(entry["message"])["message"]
        faults += network_fault(message["method"], message["params"], home)
    serious = ("SEVERE", "WARNING")
    messages = [entry for entry in browser.get_log("browser") if entry["level"] in serious]
    return faults + [f"the console says: {entry['message']}" for entry in messages]


def screenshot(browser, path):
    answer = browser.execute_cdp_cmd("Page.captureScreenshot", {})
    path.write_bytes(base64.b64decode(answer["data"]))


def take_screenshots(browser, folder, stem, width):
    """Save what the window shows, and the whole page as a tall window would show it."""
    screenshot(browser, folder / f"{stem}.png")
    height = browser.execute_script("return document.documentElement.scrollHeight")
    set_window(browser, width, height)
    screenshot(browser, folder / f"{stem}-whole.png")


def axe_faults(browser, axe, looks):
    """What axe-core calls serious or critical, in each look: `axe` is its code."""
    faults = []
    browser.execute_script(STILL)
    browser.execute_script(axe)
    for look in looks:
        browser.execute_script(LOOK_AT, look)
        for impact, rule, nodes in browser.execute_async_script(RUN_AXE):
            if impact in ("serious", "critical"):
                faults.append(f"axe, {look}: {rule} at {len(nodes)} places: {nodes[0][:160]}")
    browser.execute_script(LOOK_AT, "light")
    return faults


def check_page(browser, home, name, axe, screenshots):
    """Every fault of one page, at each width; accessibility at the widest and the narrowest."""
    faults = []
    for label, width in WIDTHS.items():
        set_window(browser, width)
        browser.get(f"{home}/{name}")
        browser.execute_script(MATH_IS_SET)
        browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
        found = browser.execute_script(PAGE_CHECKS) + network_faults(browser, home)
        if axe and label != "tablet":
            found += axe_faults(
                browser, axe, ["light", "dark"] if label == "desktop" else ["light"]
            )
        faults += [f"{name} ({label}): {fault}" for fault in found]
        if screenshots:
            stem = f"{name.removesuffix('.html').replace('/', '-')}-{label}"
            take_screenshots(browser, screenshots, stem, width)
    return faults


def check_search(browser, home):
    """Type a word into the search page as a reader does; a fault if it finds nothing."""
    set_window(browser, WIDTHS["desktop"])
    browser.get(f"{home}/search.html")
    field = next(f for f in browser.find_elements(By.NAME, "q") if f.is_displayed())
    field.send_keys(SEARCH_WORD)
    field.submit()
    hits = (By.CSS_SELECTOR, "#search-results li a")
    with contextlib.suppress(Exception):
        WebDriverWait(browser, 10).until(lambda b: b.find_elements(*hits))
    time.sleep(1)  # the summaries of the hits are fetched after their titles
    number = len(browser.find_elements(*hits))
    print(f"search for {SEARCH_WORD!r}: {number} hits")
    faults = network_faults(browser, home)
    return faults if number else [*faults, f"the search does not find {SEARCH_WORD!r}"]


def pages_of(book):
    """The pages' names; the theme leaves templates of its own in `_static`."""
    names = (path.relative_to(book).as_posix() for path in book.rglob("*.html"))
    return sorted(name for name in names if not name.startswith("_"))


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("book", type=Path, help="the folder that holds the built pages")
    parser.add_argument("--axe", type=Path, help="axe.min.js, the code of axe-core")
    parser.add_argument("--pages", nargs="*", help="these pages only")
    parser.add_argument("--screenshots", type=Path, help="a folder for pictures of the pages")
    arguments = parser.parse_args()
    pages = arguments.pages or pages_of(arguments.book)
    axe = arguments.axe.read_text(encoding="utf-8") if arguments.axe else ""
    if not pages:
        sys.exit(f"There are no pages in {arguments.book}: run make site first.")
    if arguments.screenshots:
        arguments.screenshots.mkdir(parents=True, exist_ok=True)
    faults = []
    with served(arguments.book) as home, chromium() as browser:
        checks = [
            functools.partial(check_page, name=page, axe=axe, screenshots=arguments.screenshots)
            for page in pages
        ]
        for check in [*checks, check_search]:
            found = check(browser, home)
            print("\n".join(found), end="\n" if found else "", flush=True)
            faults += found
    print(f"{len(pages)} pages, {len(faults) or 'no'} faults.")
    sys.exit(bool(faults))


if __name__ == "__main__":
    main()
