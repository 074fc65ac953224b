"""The page of demo.py in headless Chromium: as a visitor uses it, on a desktop and on a phone."""

import io
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

pytest.importorskip("gradio", reason="gradio is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

ROOT = Path(__file__).resolve().parent.parent
SECONDS = 1000  # milliseconds, which is what playwright counts in
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address(trained: dict[str, Path]) -> Iterator[str]:
    """demo.py as a program of its own, ended as a service is."""
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port = some.getsockname()[1]
    flags = [f"--network={trained['instance']}", f"--data={trained['data']}", f"--port={port}", "--device=cpu"]
    with subprocess.Popen([sys.executable, "demo.py", *flags], cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert f"http://127.0.0.1:{port}/" in line
        yield f"http://127.0.0.1:{port}/"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        own = Path(playwright.chromium.executable_path)
        found = shutil.which("chromium") or shutil.which("google-chrome")
        if not own.exists() and found is None:
            pytest.skip("there is no Chromium: install it, or run playwright install chromium")
        path = None if own.exists() else found
        chromium = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield chromium
        chromium.close()


class Visit:
    """One visitor; remembers what the page asked for, and what went wrong on it."""

    def __init__(self, browser: Any, address: str, width: int = 1280) -> None:
        self.address, self.requests, self.faults = address, [], []
        self.page = browser.new_context(viewport={"width": width, "height": 850}, accept_downloads=True).new_page()
        self.page.set_default_timeout(30 * SECONDS)
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.on("console", lambda said: self.faults.append(said.text) if said.type == "error" else None)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.goto(address)
        self.images = self.until_other([])

    def until_other(self, before: list[str]) -> list[str]:
        """Addresses of the samples, once they are others; they are named by their content."""
        self.page.wait_for_function(
            "before => { const now = [...document.querySelectorAll('.samples img')].map(image => image.src);"
            "  return now.length && JSON.stringify(now) != JSON.stringify(before) }",
            arg=before,
        )
        images: list[str] = self.page.eval_on_selector_all(".samples img", "images => images.map(image => image.src)")
        return images

    def changed(self) -> bool:
        """Wait for other samples than last time."""
        before, self.images = self.images, self.until_other(self.images)
        return set(before) != set(self.images)

    def slide(self, label: str, value: str) -> None:
        box = self.page.get_by_label(f"number input for {label}")
        box.fill(value)
        box.press("Enter")


def no_request_left(visit: Visit) -> bool:
    return all(url.startswith((visit.address, "data:", "blob:")) for url in visit.requests)


def test_a_visitor_picks_sends_and_slides(browser: Any, address: str, tmp_path: Path) -> None:
    visit = Visit(browser, address)
    page = visit.page
    assert len(visit.images) == 8
    assert page.locator("#nearest img").count() == 6

    page.locator("#gallery-A button.thumbnail-item").nth(9).click()
    assert visit.changed()
    visit.slide("Seed of the first sample", "40")
    assert visit.changed()
    visit.slide("Truncation", "0.5")
    assert visit.changed()
    visit.slide("Mix", "0.5")
    assert visit.changed()
    visit.slide("Number of samples", "5")
    assert visit.changed()
    assert len(visit.images) == 5

    visit.slide("Mix", "0")
    assert visit.changed()
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "noise.png")
    page.locator("input[type=file]").first.set_input_files(tmp_path / "noise.png")
    assert visit.changed()

    page.locator("#strip").click()
    page.wait_for_selector(".steps img")
    assert page.locator(".steps img").count() == 8
    with page.expect_download() as download:
        page.locator("#samples-zip").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        assert archive.namelist() == [f"noise-seed00{seed}.png" for seed in range(40, 45)]
        with PIL.Image.open(io.BytesIO(archive.read("noise-seed0040.png"))) as image:
            assert image.size == (8, 8)
    visit.slide("Seed of the first sample", "3")
    page.locator(".steps").wait_for(state="hidden")  # it was of another seed

    assert visit.faults == []
    assert no_request_left(visit)


def test_wrong_uploads_are_told_on_the_page(browser: Any, address: str, tmp_path: Path) -> None:
    visit = Visit(browser, address)
    (tmp_path / "words.png").write_text("not an image")
    (tmp_path / "huge.png").write_bytes(bytes(11 << 20))
    for name, text in (
        ("words.png", "words.png is not an image that can be read here"),
        ("huge.png", "exceed the maximum allowed size of 10.0"),
    ):
        visit.page.locator("input[type=file]").first.set_input_files(tmp_path / name)
        visit.page.get_by_text(text).first.wait_for()
    assert visit.page.locator(".samples img").count() == 8
    assert no_request_left(visit)


def test_two_visitors_do_not_see_each_other(browser: Any, address: str) -> None:
    one, two = Visit(browser, address), Visit(browser, address)
    assert one.images == two.images
    one.page.locator("#gallery-A button.thumbnail-item").nth(5).click()
    assert one.changed()
    two.slide("Seed of the first sample", "3")
    assert two.changed()
    fresh = Visit(browser, address)
    assert set(fresh.images[3:]) <= set(two.images)  # still of the first exemplar
    assert not set(one.images) & set(two.images)


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_is_wider_than_the_screen(browser: Any, address: str, width: int) -> None:
    visit = Visit(browser, address, width)
    visit.page.locator("#strip").click()
    visit.page.wait_for_selector(".steps img")
    assert visit.page.evaluate("document.documentElement.scrollWidth") <= width
    boxes = [image.bounding_box() for image in visit.page.locator(".samples img, .steps img, #nearest img").all()]
    assert len(boxes) == 8 + 8 + 6
    assert all(box is not None and box["x"] >= 0 and box["x"] + box["width"] <= width for box in boxes)
    assert visit.faults == []
