"""A browser that opens the page, and servers for it."""

import shutil
import threading
import time
from dataclasses import dataclass, field

import numpy as np
import pytest
from browsing import png
from sklearn.datasets import load_digits

from jemstone.deployment.predictor import Predictor

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
SLOW = 60_000
"""Milliseconds that a busy machine may take."""


@pytest.fixture(scope="session")
def shipped() -> Predictor:
    """The digits model that comes with jemstone, and its own policy."""
    return Predictor.load("digits")


@pytest.fixture(scope="session")
def pictures(shipped) -> dict[str, bytes]:
    """A digit that the model accepts, and noise, which it does not."""
    digits = (load_digits().images * 255 / 16).astype(np.uint8)
    digit = digits[int(np.flatnonzero(shipped(digits[:50]).accepted)[0])]
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    return {"digit": png(digit), "noise": png(noise)}


@pytest.fixture(scope="session")
def serve():
    """serve(predictor, **options) -> address; all end with the tests."""
    pytest.importorskip("fastapi", reason="The page needs the extra serve: pip install 'jemstone[serve]'")
    import uvicorn

    from jemstone.deployment.serve.app import make_app
    from jemstone.deployment.serve.server import bound

    running = []

    def start(predictor: Predictor, **options) -> str:
        own = bound("127.0.0.1", 0)
        server = uvicorn.Server(uvicorn.Config(make_app(predictor, **options), log_config=None, lifespan="on"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [own]}, daemon=True)
        thread.start()
        while not server.started:
            assert thread.is_alive(), "the server did not start"
            time.sleep(0.01)
        running.append((server, thread))
        return f"http://127.0.0.1:{own.getsockname()[1]}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


@pytest.fixture(scope="session")
def address(serve, shipped) -> str:
    return serve(shipped)


@pytest.fixture(scope="session")
def browser():
    if CHROMIUM is None:
        pytest.skip("There is no browser: install chromium or google-chrome, so that one of them is on the PATH")
    sync_api = pytest.importorskip("playwright.sync_api", reason="There is no playwright: pip install playwright")
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@dataclass
class Visits:
    """Opens the page, and keeps what must not happen on it."""

    browser: object
    faults: list[str] = field(default_factory=list)
    refusals: list[int] = field(default_factory=list)
    contexts: list = field(default_factory=list)

    def open(self, address: str, width: int = 1280, height: int = 900, ready: bool = True, **options):
        context = self.browser.new_context(viewport={"width": width, "height": height}, **options)
        self.contexts.append(context)
        context.set_default_timeout(SLOW)
        page = context.new_page()
        page.add_init_script(
            "addEventListener('securitypolicyviolation', (e) => console.error(e.violatedDirective, e.blockedURI))"
        )

        def went(request) -> None:
            if not request.url.startswith((address, "data:", "blob:")):
                self.faults.append(f"left the server: {request.url}")

        def said(message) -> None:
            # Of refused requests the browser says so itself; `refusals` has them.
            if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
                self.faults.append(message.text)

        page.on("request", went)
        page.on("console", said)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("response", lambda answer: self.refusals.append(answer.status) if answer.status >= 400 else None)
        page.goto(address)
        if ready:
            page.wait_for_selector("body.ready")
            page.wait_for_selector("#examples .tile >> nth=7")  # 4 of the model, 4 foreign
        return page


@pytest.fixture
def visits(browser):
    visits = Visits(browser)
    yield visits
    for context in visits.contexts:
        context.close()
    assert visits.faults == []
    assert visits.refusals == [], "requests were refused that the test did not take note of"
