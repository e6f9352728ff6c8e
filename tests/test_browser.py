"""The first notebook in a real JupyterLab in a real browser: it runs, it shows, it asks nobody outside."""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parent.parent
START = ROOT / "notebooks" / "00_start_here.ipynb"
INSPECTOR = ROOT / "notebooks" / "10_token_inspector.ipynb"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
REQUIRED = os.environ.get("CDLEARN_REQUIRE_BROWSER") == "1"
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking"
FLAGS += " --disable-component-update --disable-sync --disable-dev-shm-usage"
# what JupyterLab itself says on a healthy page, word for word
BENIGN = ("Failed to load resource: the server responded with a status of 404",)  # no saved workspace yet
SECONDS = 240

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(
        CHROMIUM is None and not REQUIRED,
        reason="no Chromium on this machine (apt-get install chromium); CDLEARN_REQUIRE_BROWSER=1 makes this a failure",
    ),
]


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """A JupyterLab of its own, with folders of its own; yields (address with token, notebook folder)."""
    root = tmp_path_factory.mktemp("lab")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    names = "CONFIG_DIR DATA_DIR RUNTIME_DIR".split()
    env = os.environ | {f"JUPYTER_{name}": str(root / name.lower()) for name in names}
    env |= {f"JUPYTERLAB_{name}": str(root / name.lower()) for name in ("SETTINGS_DIR", "WORKSPACES_DIR")}
    env |= {"IPYTHONDIR": str(root / "ipython"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    env.pop("MPLBACKEND", None)  # the kernel's inline backend draws the figures
    quiet = root / "settings_dir" / "@jupyterlab" / "apputils-extension"
    quiet.mkdir(parents=True)
    news = {"fetchNews": "false", "checkForUpdates": False}
    (quiet / "notification.jupyterlab-settings").write_text(json.dumps(news))
    (root / "notebooks").mkdir()
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--ip=127.0.0.1", f"--port={port}"]
    command += [
        "--ServerApp.port_retries=0",
        "--IdentityProvider.token=t",
        f"--ServerApp.root_dir={root / 'notebooks'}",
    ]
    command += ["--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly"]
    log = root / "lab.log"
    with open(log, "w") as out:
        server = subprocess.Popen(command, env=env, stdout=out, stderr=out, cwd=root)
    address = f"http://127.0.0.1:{port}"
    try:
        _wait(lambda: _answers(f"{address}/api"), server, log)
        yield address, root / "notebooks"
    finally:
        server.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            server.wait(20)
        server.kill()


def _answers(url):
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except OSError:
        return False


def _wait(ready, server, log):
    deadline = time.monotonic() + 90
    while not ready():
        assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
        time.sleep(0.3)


@pytest.fixture(scope="module")
def browser():
    assert CHROMIUM, "CDLEARN_REQUIRE_BROWSER=1 and there is no Chromium: apt-get install chromium"
    from playwright.sync_api import sync_playwright

    rules = "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=[*FLAGS.split(), rules])
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser, lab):
    """A page that remembers what it asked for outside, and what it complained about."""
    page = browser.new_page(viewport={"width": 1300, "height": 900})
    page.set_default_timeout(60_000)
    page.outside, page.complaints = [], []
    local = (lab[0], lab[0].replace("http", "ws"), "data:", "blob:", "about:")
    page.on("request", lambda request: request.url.startswith(local) or page.outside.append(request.url))
    page.on("websocket", lambda socket: socket.url.startswith(local) or page.outside.append(socket.url))
    page.on("pageerror", lambda error: page.complaints.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.complaints.append(message.text))
    yield page
    page.close()


READY = """() => {
    const panel = window.jupyterapp?.shell.currentWidget;
    return panel?.sessionContext?.isReady && panel.sessionContext.session?.kernel?.status === 'idle';
}"""
# the DOM's own indicator lies: ask the application whether the kernel is idle and every cell has run
DONE = """() => {
    const panel = window.jupyterapp.shell.currentWidget;
    const code = panel.content.widgets.map(w => w.model).filter(m => m.type === 'code' && m.sharedModel.source.trim());
    const failed = code.some(m => m.outputs.toJSON().some(o => o.output_type === 'error'));
    const idle = panel.sessionContext.session.kernel.status === 'idle';
    return idle && window.allRun && (failed || code.every(m => m.executionCount !== null));
}"""
OUTPUTS = """() => window.jupyterapp.shell.currentWidget.content.widgets.map(w => w.model)
    .filter(m => m.type === 'code').flatMap(m => m.outputs.toJSON())"""


def run_all(page, lab, name):
    """Open a notebook, run every cell from cleared outputs; returns the outputs that the page then holds."""
    page.goto(f"{lab[0]}/lab/tree/{name}?token=t&reset")
    page.wait_for_function(READY, timeout=90_000)
    page.evaluate("() => window.jupyterapp.commands.execute('notebook:clear-all-cell-outputs')")
    run = "() => {window.jupyterapp.commands.execute('notebook:run-all-cells').finally(() => {window.allRun = true})}"
    page.evaluate(run)
    page.wait_for_function(DONE, timeout=SECONDS * 1000)
    page.wait_for_timeout(500)
    return page.evaluate(OUTPUTS)


def text_of(output):
    data = output.get("text") or output.get("data", {}).get("text/plain", "")
    return "".join(data)


def errors(outputs):
    return [f"{o['ename']}: {o['evalue']}" for o in outputs if o["output_type"] == "error"]


def images(outputs):
    return sum("image/png" in output.get("data", {}) for output in outputs)


def assert_quiet(page):
    assert page.outside == []
    assert [text for text in page.complaints if not text.startswith(BENIGN)] == []


@pytest.mark.skipif(not START.exists(), reason="notebooks/00_start_here.ipynb is not written yet")
def test_the_start_notebook_runs_and_shows_its_text_and_figures(page, lab):
    shutil.copytree(START.parent, lab[1], dirs_exist_ok=True)  # a copy: JupyterLab saves what it opens
    committed = [o for c in nbformat.read(START, 4).cells if c.cell_type == "code" for o in c.outputs]
    outputs = run_all(page, lab, START.name)
    assert errors(outputs) == []
    assert images(outputs) == images(committed)
    printed = next(text_of(o) for o in committed if o.output_type == "stream" and o.name == "stdout")
    line = next(line for line in printed.splitlines() if line.strip())
    shown = page.locator(".jp-OutputArea-output", has_text=line.strip()).first
    shown.scroll_into_view_if_needed()
    assert shown.is_visible()
    assert_quiet(page)


def test_text_figure_and_slider_appear_and_an_error_is_seen(page, lab):
    """The check itself: what it must find is found, in a notebook made for it."""
    cells = ["import cdlearn\nprint('hello from', cdlearn.__name__)"]
    cells += ["import matplotlib.pyplot as plt\nplt.plot([1, 3, 2]);"]
    cells += ["import ipywidgets\nipywidgets.FloatSlider(description='strength')"]
    cells += ["raise ValueError('on purpose')"]
    book = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    book.metadata.kernelspec = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, lab[1] / "made.ipynb")
    outputs = run_all(page, lab, "made.ipynb")
    assert errors(outputs) == ["ValueError: on purpose"]
    assert images(outputs) == 1
    assert page.locator(".jp-OutputArea-output", has_text="hello from cdlearn").first.is_visible()
    assert page.locator(".jp-OutputArea-output img").first.is_visible()
    assert page.locator(".noUi-handle").first.is_visible()
    assert_quiet(page)


# JupyterLab takes cells that are out of sight off the page: bring the first inspector that has its source into view
FIND = """() => {
    const panel = window.jupyterapp.shell.currentWidget, cells = panel.content.widgets;
    const k = cells.findIndex(cell => /cdlearn\\.inspect\\(.*source=/.test(cell.model.sharedModel.source));
    panel.content.activeCellIndex = k;
    panel.content.scrollToItem(k, 'start');
    cells[k].node.setAttribute('data-seen-by', 'test');
}"""


def test_the_inspector_by_keyboard(page, lab):
    from playwright.sync_api import expect

    shutil.copy(INSPECTOR, lab[1] / INSPECTOR.name)
    assert errors(run_all(page, lab, INSPECTOR.name)) == []
    page.evaluate(FIND)
    box = page.locator("[data-seen-by=test]").locator(".jp-OutputArea-output").first
    box.locator(".noUi-handle").first.wait_for()

    table = box.locator("table").first
    before = table.inner_text()
    box.locator(".noUi-handle").first.focus()  # strength, which stands at 0.33
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    box.get_by_text("another token at position 0").wait_for()
    assert table.inner_text() != before

    texts = box.locator("select").first  # the texts to choose from
    for button, name in (("Regenerate from here", "from 0"), ("Branch on it", "branch at 0")):
        box.get_by_role("button", name=button).click()
        expect(texts).to_have_value(name)  # the option arrives first, the choice a moment later
    assert_quiet(page)


def test_the_handouts_slider_moves_without_a_server(page, tmp_path):
    import cdlearn

    pair = cdlearn.load_pair()
    source = cdlearn.Contrast(pair.expert, pair.amateur, beta=0.5)
    made = cdlearn.generate(source, "Zoe had a red kite.", tokenizer=pair.tokenizer, max_new_tokens=24, progress=False)
    made.trace.to_html(tmp_path / "handout.html")
    page.outside.clear()
    page.goto((tmp_path / "handout.html").as_uri())
    recorded = page.locator("#strip").inner_text()
    page.locator("#strength").focus()
    for _ in range(60):
        page.keyboard.press("ArrowLeft")
    assert "Another token at position" in page.locator("#said").inner_text()
    # the page's arithmetic is the library's
    strength = float(page.locator("#strength").input_value())
    changed = made.trace.first_change(strength=strength)
    assert f"position {changed};" in page.locator("#said").inner_text()
    assert page.locator("#strip").inner_text() != recorded
    assert [url for url in page.outside if not url.startswith("file:")] == [] and page.complaints == []
