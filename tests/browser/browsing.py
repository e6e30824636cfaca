"""A real browser, JupyterLab and Voila: started on free ports of this machine, private settings, no way out."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import urlparse

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
TOKEN = "for-tests-only"
HINT = "pip install 'napo[test]' and Chromium (Debian: apt-get install chromium; else: playwright install chromium)"
SECONDS = 180  # patience with a page: machines are shared


class NoBrowser(Exception):
    """There is no browser here; the message says what to install."""


@contextlib.contextmanager
def browser():
    """A headless Chromium of playwright: this system's if there is one, else playwright's own. Raises NoBrowser."""
    try:
        from playwright.sync_api import Error, sync_playwright
    except ImportError:
        raise NoBrowser(f"no playwright: {HINT}") from None
    with sync_playwright() as playwright:
        found = next(filter(None, map(shutil.which, NAMES)), None)
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []  # root has none
        try:
            running = playwright.chromium.launch(executable_path=found, args=[*sandbox, "--disable-dev-shm-usage"])
        except Error as error:
            raise NoBrowser(f"no Chromium starts ({str(error).splitlines()[0]}): {HINT}") from None
        with contextlib.closing(running):
            yield running


@contextlib.contextmanager
def page(running):
    """A page that reaches this machine only."""
    context = running.new_context(viewport={"width": 1100, "height": 1250})
    context.set_default_timeout(SECONDS * 1000)
    context.route("**/*", _stay_here)
    with contextlib.closing(context):
        yield context.new_page()


def _stay_here(route):
    here = urlparse(route.request.url).hostname in ("127.0.0.1", None)
    route.continue_() if here else route.abort()


# ---- servers --------------------------------------------------------------------------------------------------------


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def private_environment(folder):
    """The environment of a server that sees no settings of this account."""
    names = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR")
    names += ("JUPYTERLAB_SETTINGS_DIR", "JUPYTERLAB_WORKSPACES_DIR", "IPYTHONDIR")
    places = {name: str(folder / name.lower()) for name in names}
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    return os.environ | places | {"JUPYTER_TOKEN": TOKEN, "JUPYTER_PREFER_ENV_PATH": "1", "PYTHONPATH": path}


@contextlib.contextmanager
def server(command, folder, environment, cwd):
    """A server process in a group of its own, ended with all its kernels. Yields its log file."""
    log = folder / "server.log"
    with open(log, "wb") as out:
        process = subprocess.Popen(command, cwd=cwd, env=environment, stdout=out, stderr=out)
        try:
            yield log
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()


def wait_for(condition, what, seconds=SECONDS):
    """The first true value of `condition()`. Fails after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if value := condition():
            return value
        time.sleep(0.05)
    raise AssertionError(f"no {what} within {seconds} s")


def answers(port):
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


@contextlib.contextmanager
def lab(folder, notebook, arguments=()):
    """JupyterLab on a copy of the notebooks (it saves what it opens). Yields the address of `notebook`."""
    work = folder / "work"
    for name in ("notebooks", "figures/study"):
        shutil.copytree(ROOT / name, work / name)
    for copy in (work / "notebooks").glob("*.ipynb"):  # so that nothing is written into this repository
        text = copy.read_text(encoding="utf-8")
        assert r"runs_dir = \"runs\"" in text
        copy.write_text(text.replace(r"runs_dir = \"runs\"", rf"runs_dir = \"{work}/runs\""), encoding="utf-8")
    environment, port = private_environment(folder), free_port()
    settings = Path(environment["JUPYTERLAB_SETTINGS_DIR"]) / "@jupyterlab/apputils-extension"
    settings.mkdir(parents=True)
    (settings / "notification.jupyterlab-settings").write_text(json.dumps({"fetchNews": "false"}))
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--expose-app-in-browser"]
    command += ["--ServerApp.ip=127.0.0.1", f"--ServerApp.port={port}", "--ServerApp.port_retries=0", *arguments]
    with server(command, folder, environment, work) as log:
        wait_for(lambda: answers(port), f"JupyterLab ({log})")
        yield f"http://127.0.0.1:{port}/doc/tree/{notebook}?token={TOKEN}&reset"


@contextlib.contextmanager
def voila(folder, arguments=()):
    """What `make explore` starts. Yields the address that it prints."""
    command = [sys.executable, "-m", "napo", "serve", "--port", str(free_port()), *map(str, arguments)]
    with server(command, folder, private_environment(folder), ROOT) as log:
        address = wait_for(lambda: re.search(r"http://\S+", log.read_text()), "address").group()
        wait_for(lambda: answers(urlparse(address).port), f"Voila ({log})")
        yield address


# ---- the explorer in a page -----------------------------------------------------------------------------------------

RUN_ALL = """async () => {
  const app = window.jupyterapp;
  const shown = app.shell.currentWidget;
  await shown.context.ready;
  await shown.context.sessionContext.ready;
  await shown.context.sessionContext.session.kernel.info;
  app.commands.execute('notebook:run-all-cells');
}"""
IN_KERNEL = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.context.sessionContext.session.kernel;
  const future = kernel.requestExecute({code: '', silent: true, store_history: false, user_expressions: {it: code}});
  const reply = await future.done;
  const result = reply.content.user_expressions.it;
  return result.status === 'ok' ? result.data['text/plain'] : `${result.ename}: ${result.evalue}`;
}"""


def open_lab(page, address):
    """Open a notebook in JupyterLab and run all its cells."""
    page.goto(address)
    page.wait_for_selector(".jp-NotebookPanel:not(.lm-mod-hidden) .jp-CodeCell")
    page.wait_for_function("() => window.jupyterapp && window.jupyterapp.shell.currentWidget")
    page.evaluate(RUN_ALL)


def in_kernel(page, expression):
    """repr of an expression's value in the kernel of the open notebook."""
    return page.evaluate(IN_KERNEL, expression)


class OnPage:
    """The explorer as somebody at the screen has it."""

    def __init__(self, page):
        self.page = page
        self.image = page.locator("img.napo-image")
        self.image.wait_for()
        self.image.scroll_into_view_if_needed()
        page.wait_for_function("() => document.querySelector('img.napo-image').naturalWidth > 0")

    def slider(self, name):
        return self.page.locator(f".napo-{name}:not(.napo-{name}-field)").get_by_role("slider")

    def field(self, name):
        return self.page.locator(f".napo-{name}-field input")

    def text(self, part):
        return self.page.locator(f".napo-{part}").inner_text()

    def choose(self, part, label):
        self.page.locator(f".napo-{part} select").select_option(label=label)

    def press(self, part):
        self.page.locator(f"button.napo-{part}").click()

    def source(self):
        return self.image.get_attribute("src")

    def pixels(self):
        """(H, W, 3) of the picture as it stands on the screen."""
        return np.asarray(Image.open(io.BytesIO(self.image.screenshot())).convert("RGB")).astype(int)

    def changed(self, source):
        """Wait until the picture is another one, and decoded."""
        self.page.wait_for_function(
            "(old) => { const i = document.querySelector('img.napo-image');"
            " return i.src !== old && i.complete && i.naturalWidth > 0; }",
            arg=source,
        )
