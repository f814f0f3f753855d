"""Notebooks in a real JupyterLab and pages of the site in a real browser: cells run, widgets are used, nothing leaves
this machine.
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not CHROMIUM, reason="no Chromium on this machine: apt-get install chromium"),
    pytest.mark.xdist_group("site"),
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("playwright", "jupyterlab"))),
        reason="needs playwright and jupyterlab (extra `dev`)",
    ),
]
FLAGS = [
    "--no-browser",
    "--allow-root",
    "--ServerApp.ip=127.0.0.1",
    "--IdentityProvider.token=",
    "--ServerApp.password=",
    "--ServerApp.disable_check_xsrf=True",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
    "--LabApp.extension_manager=readonly",
]
OVERRIDES = {
    "@jupyterlab/apputils-extension:notification": {"fetchNews": "false", "checkForUpdates": False},
    "@jupyterlab/docmanager-extension:plugin": {"autosave": False},
}


@pytest.fixture(scope="module")
def page():
    "A page of headless Chromium; `page.outside` holds what it asked other machines for."
    from playwright.sync_api import sync_playwright

    with sync_playwright() as p:
        browser = p.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"]
        )
        page = browser.new_page(viewport={"width": 1300, "height": 1000})
        page.outside = []
        page.on(
            "request",
            lambda r: (
                page.outside.append(r.url)
                if not r.url.startswith(("http://127.0.0.1", "ws://127.0.0.1", "data:", "blob:", "about:", "file:"))
                else None
            ),
        )
        page.set_default_timeout(90_000)
        yield page
        browser.close()


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    """Address of a JupyterLab server of its own, in a folder with the notebooks that have widgets and the reported
    figures.
    """
    home = tmp_path_factory.mktemp("lab")
    (home / "nbs").mkdir()
    (home / "figures").symlink_to(ROOT / "figures")
    for name, cells in {
        "tutorials/explorers": None,
        "tutorials/echocardiography": 5,
    }.items():  # of the tour of echocardiography as far as the player
        notebook = json.loads((ROOT / "nbs" / f"{name}.ipynb").read_text())
        notebook["cells"] = notebook["cells"][:cells]
        for cell in notebook["cells"]:
            if cell["cell_type"] == "code":
                cell["outputs"] = []
        (home / "nbs" / f"{Path(name).name}.ipynb").write_text(json.dumps(notebook))
    (home / "config" / "labconfig").mkdir(parents=True)
    (home / "config" / "labconfig" / "default_setting_overrides.json").write_text(json.dumps(OVERRIDES))
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port = s.getsockname()[1]
    folders = {f"JUPYTER_{k}_DIR": str(home / k.lower()) for k in ("CONFIG", "DATA", "RUNTIME")} | dict(
        JUPYTERLAB_SETTINGS_DIR=str(home / "user"), JUPYTERLAB_WORKSPACES_DIR=str(home / "work")
    )
    env = (
        {k: v for k, v in os.environ.items() if k != "CLASSIMPRESSION_STATIC"}
        | folders
        | dict(PYTHONPATH=str(ROOT), OMP_NUM_THREADS="1")
    )
    with open(home / "log", "w") as log:
        server = subprocess.Popen(
            [sys.executable, "-m", "jupyterlab", *FLAGS, f"--ServerApp.port={port}", f"--ServerApp.root_dir={home}"],
            cwd=home,
            env=env,
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(240):
                try:
                    urllib.request.urlopen(f"http://127.0.0.1:{port}/api/status", timeout=2)
                    break
                except OSError:
                    time.sleep(0.5)
                    assert server.poll() is None, (home / "log").read_text()[-3000:]
            yield f"http://127.0.0.1:{port}"
        finally:
            server.terminate()
            try:
                server.wait(15)
            except subprocess.TimeoutExpired:
                server.kill()


def shoot(page, name: str) -> None:
    "A screenshot, for people, where CLASSIMPRESSION_SCREENSHOTS says."
    if folder := os.environ.get("CLASSIMPRESSION_SCREENSHOTS"):
        page.screenshot(path=Path(folder) / f"{name}.png")


def until(page, script: str, argument=None) -> None:
    page.wait_for_function(script, arg=argument, timeout=90_000)


def run_all_cells(page, address: str) -> None:
    "Open a notebook in JupyterLab and run it."
    page.goto(address)
    page.locator(
        "text=Python 3 >> visible=true"
    ).first.wait_for()  # kernels of other notebooks are listed too, out of sight
    until(
        page,
        "() => [...document.querySelectorAll('.jp-StatusBar-TextItem, .jp-StatusBar-GroupItem')].some(e => "
        "/Idle/.test(e.textContent))",
    )
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_role("menuitem", name="Run All Cells", exact=True).click()


def test_explorers_in_jupyterlab(page, lab):
    run_all_cells(page, f"{lab}/lab/tree/nbs/explorers.ipynb?reset")
    start = page.get_by_role("button", name="Start", exact=True)
    start.wait_for()
    page.get_by_text("step 0 of 150").wait_for()
    first = page.locator(".widget-image").first
    before = first.get_attribute("src")

    start.click()
    until(page, "() => /step [1-9]\\d* of 150/.test(document.body.innerText)")  # it moves while the kernel is free
    page.get_by_role("button", name="Stop", exact=True).click()
    until(page, "() => /step \\d+ of 150;[^;]*(; stopped|\\n|$)/.test(document.body.innerText)")
    assert first.get_attribute("src") != before, "the images follow the optimisation"
    shoot(page, "explorer_stopped")

    handle = page.locator(".widget-slider .noUi-handle, .noUi-handle").first
    handle.focus()
    for _ in range(3):
        page.keyboard.press("ArrowRight")
    page.get_by_role("button", name="Reset", exact=True).click()
    page.get_by_text("step 0 of 150").wait_for()
    page.locator(".widget-dropdown select").first.select_option(label="platelet")
    until(page, "() => /recognised as platelet/.test(document.body.innerText)")
    start.click()
    until(page, "() => /step 150 of 150/.test(document.body.innerText)")
    shoot(page, "explorer_done")

    view = page.locator("select:has(option:text-is('confusion'))")
    view.scroll_into_view_if_needed()
    shown = page.locator(".widget-image").nth(2).get_attribute("src")
    view.select_option(label="accuracy matrix")
    until(page, "(old) => document.querySelectorAll('.widget-image')[2].src !== old", shown)
    shoot(page, "browser_matrix")
    view.select_option(label="confusion")
    page.get_by_text("embedded test images of").first.wait_for()  # it opens on one repeat, and draws
    shoot(page, "browser_confusion")
    repeats = page.locator(".widget-select-multiple select").nth(1)
    repeats.select_option(index=[0, 1])
    page.get_by_text("class orders").wait_for()  # repeats with different orders: it says so
    assert not page.locator(
        ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'], .jp-mod-error"
    ).count(), "a cell wrote an error"
    assert not page.outside, page.outside[:5]


def test_cine_player_in_jupyterlab(page, lab):
    run_all_cells(page, f"{lab}/lab/tree/nbs/echocardiography.ipynb?reset")
    shown = page.locator(".widget-image")
    shown.wait_for()

    def another_picture(after: str) -> None:
        until(page, "(old) => document.querySelector('.widget-image').src !== old", after)

    before = shown.get_attribute("src")
    page.locator(".widget-dropdown select").select_option(label="PLAX")
    another_picture(before)
    for slider in (0, 1):  # series, then frame
        before = shown.get_attribute("src")
        page.locator(".widget-slider .noUi-handle").nth(slider).focus()
        page.keyboard.press("ArrowRight")
        another_picture(before)
    play = page.locator(".widget-play button")
    play.first.click()
    for frame in (2, 3, 0):
        until(
            page,
            "(n) => Number(document.querySelectorAll('.widget-slider .widget-readout')[1].textContent) === n",
            frame,
        )  # it goes on by itself, and round
    play.nth(1).click()  # stop
    shoot(page, "cine")
    assert not page.locator(
        ".jp-RenderedText[data-mime-type='application/vnd.jupyter.stderr'], .jp-mod-error"
    ).count(), "a cell wrote an error"
    assert not page.outside, page.outside[:5]


@pytest.mark.parametrize(
    "name",
    ["index", "tour", "tutorials/pictures", "tutorials/results", "07_synthesis", "api/synthesis", "results", "tables"],
)
def test_site_is_readable_on_a_phone(page, site, name):
    page.set_viewport_size({"width": 390, "height": 844})
    page.goto(f"file://{site}/{name}.html")
    page.wait_for_load_state()
    width = page.evaluate("document.scrollingElement.scrollWidth")
    shoot(page, f"site_{name.replace('/', '_')}")
    assert width <= 390, f"{name} is {width} pixels wide"
    assert page.locator("h1").first.is_visible() and not page.outside
    small = page.evaluate(
        "Math.min(...[...document.querySelectorAll('article p')].filter(e => e.innerText.length > 80).map(e => "
        "parseFloat(getComputedStyle(e).fontSize)))"
    )
    assert small >= 12, f"text of {small} pixels"


def test_search_without_a_server(page, site):
    page.set_viewport_size({"width": 1280, "height": 900})
    page.goto(f"file://{site}/index.html")
    page.locator("[data-md-component=search-query]").fill("total variation")
    page.locator(".md-search-result__item").first.wait_for()
    shoot(page, "site_search")
    assert "synthesis" in page.locator(".md-search-result__list").inner_text().lower() and not page.outside
