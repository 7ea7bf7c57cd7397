"""The page in a browser, against a server, with what it says checked against the predictor itself."""

import base64
import io
import json
from dataclasses import replace

import numpy as np
import pytest
from browsing import choose, drop, png
from PIL import Image

from jemstone.deployment.predictor import Predictor

expect = pytest.importorskip("playwright.sync_api", reason="There is no playwright: pip install playwright").expect


def plain(text: str) -> str:
    return text.replace("\u00a0", " ").replace("−", "-")


def percent(share: float) -> str:
    return "> 99.9 %" if share > 0.9995 else "< 0.1 %" if share < 0.0005 else f"{100 * share:.1f} %"


def test_accepts_a_digit_and_not_noise_as_the_predictor_does(visits, address, shipped, pictures):
    page = visits.open(address)
    expect(page.locator("#verdict")).to_contain_text("Nothing asked yet")

    drop(page, pictures["digit"])
    truth = shipped(pictures["digit"])[0]
    expect(page.locator("#verdict.accepted .said")).to_have_text(truth.label)
    assert percent(truth.probability) in plain(page.inner_text("#verdict"))
    probabilities = shipped(pictures["digit"]).probabilities[0]
    rows = [plain(" ".join(text.split())) for text in page.locator("#bars li").all_inner_texts()]
    assert rows == [f"{name} {percent(p)}" for name, p in zip(shipped.trained.class_names, probabilities, strict=True)]
    assert plain(page.inner_text("#candidates")).split(".")[0].split(": ")[1] == ", ".join(truth.candidates)
    assert f"{float(f'{truth.log_density:.4g}'):g} nats" in plain(page.inner_text("#where"))
    below = int((shipped.calibration.reference <= truth.log_density).sum())
    count = len(shipped.calibration.reference)
    assert f"{percent(below / count)} of {count} held-out" in plain(page.inner_text("#where"))

    drop(page, pictures["noise"])
    truth = shipped(pictures["noise"])[0]
    assert "out of distribution" in truth.reason
    expect(page.locator("#verdict.abstained .said")).to_have_text("I don't know")
    assert "out of distribution" in page.inner_text("#verdict").lower()
    status = page.inner_text("#status").lower()  # is read aloud
    assert status.startswith("i don't know")
    assert "out of distribution" in status
    assert "lower than that of all" in page.inner_text("#where")


def test_shows_what_the_model_sees(visits, address, shipped):
    page = visits.open(address)
    photo = np.random.default_rng(1).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    choose(page, png(photo))
    page.wait_for_selector("#answer:not([hidden])")
    seen = base64.b64decode(page.get_attribute("#seen", "src").split(",")[1])
    shown = np.asarray(Image.open(io.BytesIO(seen)), dtype=float) / 127.5 - 1
    truth = shipped.read(png(photo))[0, 0].numpy()
    assert shown.shape == (8, 8)
    assert np.abs(shown - truth).max() <= 1 / 127.5


def test_threshold_and_value_stand_where_they_belong(visits, address, shipped, pictures):
    """Positions in the drawing, compared with a linear axis through the histogram's own first and last bar."""
    page = visits.open(address)
    choose(page, pictures["digit"])
    page.wait_for_selector("#histogram circle.here")
    edges = json.loads(page.evaluate("fetch('/v1/model').then((r) => r.text())"))["reference"]["edges"]
    first = page.locator("#histogram rect").first.evaluate("(e) => e.x.baseVal.value - 0.5")
    last = page.locator("#histogram rect").last.evaluate("(e) => e.x.baseVal.value + e.width.baseVal.value + 0.5")

    assert 0 <= first < last <= page.locator("#histogram svg").bounding_box()["width"]

    def at(value: float) -> float:
        return first + (value - edges[0]) / (edges[-1] - edges[0]) * (last - first)

    value = float(shipped(pictures["digit"]).log_density[0])
    assert page.locator("#histogram circle.here").evaluate("(e) => e.cx.baseVal.value") == pytest.approx(
        at(value), abs=0.2
    )
    line = page.locator("#histogram line.threshold").evaluate("(e) => e.x1.baseVal.value")
    assert line == pytest.approx(at(shipped.thresholds.density), abs=0.2)


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


def test_plain_classifier_says_that_it_has_no_samples(visits, serve, shipped, pictures):
    trained = shipped.trained
    weights = {"class_nll": 1.0, "marginal": 0.0, "joint": 0.0, "conditional": 0.0, "energy_l2": 0.0}
    classifier = replace(trained, config=trained.config.with_values(weights=weights))
    page = visits.open(serve(Predictor(classifier, shipped.calibration, shipped.policy)), ready=False)
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
