"""The page in a browser, against a server, with what it says checked against the predictor itself."""

import base64
import io
import json
import re
import shutil
import threading
import time
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from jemstone.deployment.calibration import Policy
from jemstone.deployment.predictor import Predictor

pytest.importorskip("fastapi", reason="The page needs the extra serve: pip install 'jemstone[serve]'")
sync_api = pytest.importorskip("playwright.sync_api", reason="To see the page: pip install playwright")

import uvicorn  # noqa: E402

from jemstone.deployment.serve.app import WEB, make_app  # noqa: E402
from jemstone.deployment.serve.server import bound  # noqa: E402

expect = sync_api.expect
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome") or shutil.which("chromium-browser")
TOKEN = "let me in"
SLOW = 60_000
"""Milliseconds that a busy machine may take."""


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


@pytest.fixture(scope="module")
def lenient(predictor) -> Predictor:
    """The barely trained model errs too often for any usual policy to accept anything: promise less."""
    return Predictor(predictor.trained, predictor.calibration, Policy(error=0.7), predictor.moments)


@pytest.fixture(scope="module")
def pictures(lenient) -> dict[str, bytes]:
    """A digit that the model accepts, and noise, which it does not."""
    digits = (load_digits().images * 255 / 16).astype(np.uint8)
    digit = digits[int(np.flatnonzero(lenient(digits[:50]).accepted)[0])]
    noise = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    return {"digit": png(digit), "noise": png(noise)}


@pytest.fixture(scope="module")
def serve():
    """serve(predictor, **options) -> address; all end with the module."""
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


@pytest.fixture(scope="module")
def address(serve, lenient) -> str:
    return serve(lenient)


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None:
        pytest.skip("There is no browser: install chromium or google-chrome, so that one of them is on the PATH")
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
            "addEventListener('securitypolicyviolation', (e) => console.error('CSP', e.violatedDirective, e.blockedURI))"
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


def drop(page, content: bytes) -> None:
    """Let a file fall onto the page, as a mouse does."""
    page.evaluate(
        """(base64) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const dataTransfer = new DataTransfer();
            dataTransfer.items.add(new File([bytes], "dropped.png", { type: "image/png" }));
            for (const kind of ["dragover", "drop"])
                document.getElementById("drop").dispatchEvent(
                    new DragEvent(kind, { dataTransfer, bubbles: true, cancelable: true }));
        }""",
        base64.b64encode(content).decode(),
    )


def choose(page, content: bytes, name: str = "chosen.png") -> None:
    page.set_input_files("#file", {"name": name, "mimeType": "image/png", "buffer": content})


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("−", "-")


def percent(share: float) -> str:
    return "> 99.9 %" if share > 0.9995 else "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def test_accepts_a_digit_and_not_noise_as_the_predictor_does(visits, address, lenient, pictures):
    page = visits.open(address)
    expect(page.locator("#verdict")).to_contain_text("Nothing asked yet")

    drop(page, pictures["digit"])
    truth = lenient(pictures["digit"])[0]
    expect(page.locator("#verdict.accepted .said")).to_have_text(truth.label)
    assert percent(truth.probability) in plain(page.inner_text("#verdict"))
    probabilities = lenient(pictures["digit"]).probabilities[0]
    rows = [plain(" ".join(text.split())) for text in page.locator("#bars li").all_inner_texts()]
    assert rows == [f"{name} {percent(p)}" for name, p in zip(lenient.trained.class_names, probabilities, strict=True)]
    assert plain(page.inner_text("#candidates")).split(".")[0].split(": ")[1] == ", ".join(truth.candidates)
    assert f"{float(f'{truth.log_density:.4g}'):g} nats" in plain(page.inner_text("#where"))
    below = int((lenient.calibration.reference <= truth.log_density).sum())
    count = len(lenient.calibration.reference)
    assert f"{percent(below / count)} of {count} held-out" in plain(page.inner_text("#where"))

    drop(page, pictures["noise"])
    truth = lenient(pictures["noise"])[0]
    assert truth.reason == "out of distribution"
    expect(page.locator("#verdict.abstained .said")).to_have_text("I don't know")
    assert "Out of distribution" in page.inner_text("#verdict")
    assert "I don't know. Out of distribution" in page.inner_text("#status")  # is read aloud
    assert "lower than that of all" in page.inner_text("#where")


def test_shows_what_the_model_sees(visits, address, lenient):
    page = visits.open(address)
    photo = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    choose(page, png(photo))
    page.wait_for_selector("#answer:not([hidden])")
    seen = base64.b64decode(page.get_attribute("#seen", "src").split(",")[1])
    shown = np.asarray(Image.open(io.BytesIO(seen)), dtype=float) / 127.5 - 1
    truth = lenient.read(png(photo))[0, 0].numpy()
    assert shown.shape == (8, 8)
    assert np.abs(shown - truth).max() <= 1 / 127.5


def test_threshold_and_value_stand_where_they_belong(visits, address, lenient, pictures):
    """Positions in the drawing, compared with a linear axis through the histogram's own first and last bar."""
    page = visits.open(address)
    choose(page, pictures["digit"])
    page.wait_for_selector("#histogram circle.here")
    edges = json.loads(page.evaluate("fetch('/v1/model').then((r) => r.text())"))["reference"]["edges"]
    first = page.locator("#histogram rect").first.evaluate("(e) => e.x.baseVal.value - 0.5")
    last = page.locator("#histogram rect").last.evaluate("(e) => e.x.baseVal.value + e.width.baseVal.value + 0.5")

    def at(value: float) -> float:
        return first + (value - edges[0]) / (edges[-1] - edges[0]) * (last - first)

    value = float(lenient(pictures["digit"]).log_density[0])
    assert page.locator("#histogram circle.here").evaluate("(e) => e.cx.baseVal.value") == pytest.approx(
        at(value), abs=0.2
    )
    line = page.locator("#histogram line.threshold").evaluate("(e) => e.x1.baseVal.value")
    assert line == pytest.approx(at(lenient.thresholds.density), abs=0.2)


def test_drawing_asks_after_each_stroke_and_takes_back(visits, address):
    page = visits.open(address)
    page.check("input[value=draw]")
    box = page.locator("#canvas").bounding_box()
    middle = box["x"] + box["width"] / 2
    page.mouse.move(middle, box["y"] + 20)
    page.mouse.down()
    page.mouse.move(middle, box["y"] + box["height"] - 20, steps=5)
    page.mouse.up()
    page.wait_for_selector("#answer:not([hidden])")
    seen = base64.b64decode(page.get_attribute("#seen", "src").split(",")[1])
    columns = np.asarray(Image.open(io.BytesIO(seen)), dtype=float).mean(axis=0)
    assert columns[3:5].min() > 100 > 20 > columns[[0, 1, 6, 7]].max()  # white ink on black, in the middle
    page.click("#undo")
    expect(page.locator("#verdict")).to_contain_text("Nothing asked yet")
    assert page.is_disabled("#undo")
    assert page.is_disabled("#clear")


FOCUS = """() => {
    const at = document.activeElement;
    const marked = [at, at.nextElementSibling].filter(Boolean)
        .some((e) => getComputedStyle(e).outlineStyle !== "none" && parseFloat(getComputedStyle(e).outlineWidth) >= 2);
    return { marked, id: at.id, value: at.value ?? "", label: at.getAttribute("aria-label") ?? at.textContent.trim() };
}"""


def tab_to(page, wanted) -> None:
    for _ in range(60):
        page.keyboard.press("Tab")
        at = page.evaluate(FOCUS)
        assert at["marked"], f"the focus cannot be seen at {at}"
        if wanted(at):
            return
    raise AssertionError("the keyboard does not get there")


def test_keyboard_alone_reaches_everything(visits, address):
    page = visits.open(address)
    tab_to(page, lambda at: at["label"] == "Skip to the answer")
    tab_to(page, lambda at: at["value"] == "file")
    tab_to(page, lambda at: at["id"] == "file")
    tab_to(page, lambda at: at["label"] == "Ask about noise")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict.abstained")).to_contain_text("I don't know")
    tab_to(page, lambda at: at["id"] == "toward")
    tab_to(page, lambda at: at["label"] == "Show me")
    page.keyboard.press("Enter")
    page.wait_for_selector(".three")
    page.focus("input[value=file]")
    page.keyboard.press("ArrowRight")  # to "Draw"
    tab_to(page, lambda at: at["id"] == "canvas")
    page.keyboard.press("Space")
    for _ in range(6):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.wait_for_selector("#answer:not([hidden])")
    tab_to(page, lambda at: at["id"] == "clear")
    page.keyboard.press("Enter")
    expect(page.locator("#verdict")).to_contain_text("Nothing asked yet")
    assert page.evaluate(FOCUS)["id"] == "canvas"


def test_pasted_picture_is_asked_about(visits, address, pictures):
    page = visits.open(address)
    page.evaluate(
        """(base64) => {
            const bytes = Uint8Array.from(atob(base64), (c) => c.charCodeAt(0));
            const clipboardData = new DataTransfer();
            clipboardData.items.add(new File([bytes], "pasted.png", { type: "image/png" }));
            document.dispatchEvent(new ClipboardEvent("paste", { clipboardData, bubbles: true }));
        }""",
        base64.b64encode(pictures["digit"]).decode(),
    )
    page.wait_for_selector("#verdict.accepted")


def test_counterfactual_shows_what_the_server_answered(visits, address, pictures):
    page = visits.open(address)
    choose(page, pictures["digit"])
    page.wait_for_selector("#change:not([hidden])")
    page.select_option("#toward", "4")
    with page.expect_response("**/v1/counterfactual") as caught:
        page.click("#change button")
    answer = caught.value.json()
    page.wait_for_selector(".three")
    sources = [image.get_attribute("src") for image in page.locator(".three img").all()]
    assert sources[:2] == [answer["original"]["image"], answer["changed"][0]["image"]]
    cells = [plain(text) for text in page.locator("#changed td").all_inner_texts()]
    both = [answer["original"]["prediction"], answer["changed"][0]["prediction"]]
    assert [percent(one["probabilities"]["4"]) for one in both] == [text for text in cells if "%" in text]
    before, after, difference = (
        np.asarray(Image.open(io.BytesIO(base64.b64decode(source.split(",")[1]))).convert("RGB"), dtype=int)
        for source in sources
    )
    change = (after - before).mean(axis=2)
    warmth = difference[:, :, 0] - difference[:, :, 2]
    assert (warmth[change > 3] > 0).all()
    assert (warmth[change < -3] < -4).all()


def test_gallery_draws_one_of_each_and_asks_about_one(visits, address):
    page = visits.open(address)
    page.click("#sampling button")
    page.wait_for_selector("#sampled .tile")
    tiles = page.locator("#sampled .tile")
    assert tiles.count() == 10
    assert "of 7" in tiles.nth(7).get_attribute("aria-label")
    tiles.nth(7).click()
    page.wait_for_selector("#answer:not([hidden])")


def test_plain_classifier_says_that_it_has_no_samples(visits, serve, lenient, pictures):
    trained = lenient.trained
    weights = {"class_nll": 1.0, "marginal": 0.0, "joint": 0.0, "conditional": 0.0, "energy_l2": 0.0}
    classifier = replace(trained, config=trained.config.with_values(weights=weights))
    page = visits.open(serve(Predictor(classifier, lenient.calibration, lenient.policy)), ready=False)
    page.wait_for_selector("#examples .tile >> nth=3")
    assert "plain classifier" in page.inner_text("#gallery-about")
    choose(page, pictures["digit"])
    page.wait_for_selector("#verdict.accepted")
    assert page.is_hidden("#change")


def test_refusals_are_told_in_words(visits, address, pictures):
    page = visits.open(address)
    choose(page, b"no picture", "picture.png")
    expect(page.locator("#verdict.trouble")).to_contain_text("The picture cannot be read as an image")
    assert page.is_hidden("#answer")

    busy = {"status": 429, "headers": {"Retry-After": "5"}, "json": {"error": "busy", "message": "Full."}}
    page.route("**/v1/predict", lambda route: route.fulfill(**busy))
    choose(page, pictures["digit"])
    expect(page.locator("#verdict.trouble")).to_contain_text("The server is busy. Try again in 5 seconds.")
    page.unroute("**/v1/predict")

    page.context.set_offline(True)
    choose(page, pictures["noise"])
    expect(page.locator("#verdict.trouble")).to_contain_text("The server does not answer")
    page.context.set_offline(False)
    choose(page, pictures["digit"])
    page.wait_for_selector("#verdict.accepted")
    assert [visits.refusals.pop(0) for _ in range(2)] == [422, 429]


def test_asks_for_the_token_and_keeps_it_for_the_tab(visits, serve, lenient, pictures):
    page = visits.open(serve(lenient, token=TOKEN), ready=False)
    page.wait_for_selector("#key:not([hidden])")
    assert page.evaluate("document.activeElement.id") == "token"
    page.keyboard.type("wrong")
    page.keyboard.press("Enter")
    expect(page.locator("#key-words")).to_contain_text("That is not the token")
    page.fill("#token", TOKEN)
    page.keyboard.press("Enter")
    page.wait_for_selector("body.ready")
    assert [visits.refusals.pop(0) for _ in range(2)] == [401, 401]
    choose(page, pictures["digit"])
    page.wait_for_selector("#verdict.accepted")
    assert page.is_hidden("#key")
    page.reload()
    page.wait_for_selector("body.ready")
    assert page.evaluate("localStorage.length") == 0
    assert TOKEN not in page.url


NAMELESS = """() => [...document.querySelectorAll("input, select, button, canvas, img, svg")]
    .filter((e) => e.checkVisibility())
    .filter((e) => {
        const labelled = [...(e.labels ?? [])].some((l) => l.textContent.trim());
        const name = e.getAttribute("aria-label") || labelled || (e.localName === "button" && e.textContent.trim());
        return !(name || (e.localName === "img" && e.hasAttribute("alt")));
    }).map((e) => e.outerHTML.slice(0, 120))"""

CONTRAST = """() => {
    const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
    const light = (colour) => {
        const [r, g, b] = numbers(colour).slice(0, 3).map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4));
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = (e) => {
        for (; e; e = e.parentElement) {
            const colour = getComputedStyle(e).backgroundColor;
            if ((numbers(colour)[3] ?? 1) === 1) return colour;
        }
    };
    const found = [];
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
    while (walker.nextNode()) {
        const e = walker.currentNode.parentElement;
        if (!walker.currentNode.textContent.trim() || !e.checkVisibility() || e.closest(":disabled")) continue;
        const style = getComputedStyle(e);
        const [one, other] = [light(e instanceof SVGElement ? style.fill : style.color), light(behind(e))];
        const ratio = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
        found.push({ ratio, text: walker.currentNode.textContent.trim().slice(0, 40) });
    }
    return found;
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_names_contrast_and_phone_width(visits, address, pictures, scheme):
    """WCAG 2.2: names (4.1.2), contrast of at least 4.5 (1.4.3), no scrolling sideways (1.4.10)."""
    page = visits.open(address, 390, 844, color_scheme=scheme, reduced_motion="reduce")

    def holds() -> None:
        assert page.evaluate(NAMELESS) == []
        contrasts = page.evaluate(CONTRAST)
        assert len(contrasts) > 30
        assert [one for one in contrasts if one["ratio"] < 4.5] == []
        assert page.evaluate("document.documentElement.scrollWidth") == 390

    holds()
    choose(page, pictures["digit"])
    page.wait_for_selector("#verdict.accepted")
    page.click("#change button")
    page.wait_for_selector(".three")
    page.click("#sampling button")
    page.wait_for_selector("#sampled .tile")
    holds()
    choose(page, pictures["noise"])
    page.wait_for_selector("#verdict.abstained")
    page.check("input[value=draw]")
    holds()
    choose(page, b"no picture")
    page.wait_for_selector("#verdict.trouble")
    holds()
    assert visits.refusals.pop() == 422


def test_files_are_short_and_name_no_other_place():
    files = [path for path in WEB.iterdir() if path.is_file()]
    assert len(files) > 5
    for path in files:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) < 300, path.name
        assert set(re.findall(r"https?://[\w./]+", text)) <= {"http://www.w3.org/2000/svg"}, path.name
    index = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"\sstyle=|\son\w+=|<style|<script(?![^>]*\bsrc=)", index)
