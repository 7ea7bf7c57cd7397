"""The page by keyboard, by ear, on a phone, behind a token, and as files."""

import json
import re
from pathlib import Path

import pytest
from browsing import choose

import jemstone

expect = pytest.importorskip("playwright.sync_api", reason="There is no playwright: pip install playwright").expect
WEB = Path(jemstone.__file__).parent / "deployment" / "serve" / "web"
TOKEN = "let me in"


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


def test_asks_for_the_token_and_keeps_it_for_the_tab(visits, serve, shipped, pictures):
    page = visits.open(serve(shipped, token=TOKEN), ready=False)
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
    with page.expect_download() as caught:
        page.click("#interface")
    assert "/v1/predict" in json.loads(Path(caught.value.path()).read_text(encoding="utf-8"))["paths"]
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
