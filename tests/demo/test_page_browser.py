"""The page in a real Chromium: what somebody sees and hears who has never opened a terminal.

Run with ``pytest -m browser``; VCONV_SCREENSHOTS=FOLDER keeps the pictures of every tab.
"""

import io
import os
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile

from web_page import HELLO, Page, chromium, long_recording, page, training_run

pytest.importorskip("gradio", reason="gradio is not installed: pip install 'vconv[demo]'")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
if chromium() is None:
    pytest.skip("there is no Chromium", allow_module_level=True)

pytestmark = pytest.mark.browser

RESULT = "#convert-result .vc-stage"
PATIENCE = 90_000  # milliseconds, on a busy machine


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    folder = tmp_path_factory.mktemp("page")
    training_run(folder / "runs")
    with page(folder, "--max-seconds", 60) as there:
        yield there


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    # What the microphone hears, again and again.
    voice = tmp_path_factory.mktemp("voice") / "voice.wav"
    samples, rate = soundfile.read(HELLO)
    soundfile.write(voice, np.tile(samples, 3), rate, "PCM_16")
    with playwright.sync_playwright() as running:
        yield running.chromium.launch(
            executable_path=chromium(),
            args=[
                "--no-sandbox",
                "--use-fake-ui-for-media-stream",
                "--use-fake-device-for-media-stream",
                f"--use-file-for-fake-audio-capture={voice}",
            ],
        )


class Visit:
    """An open page; what it asked of other servers, and what its console complained of."""

    def __init__(self, browser: object, served: Page, **options: object) -> None:
        self.served = served
        self.context = browser.new_context(permissions=["microphone"], **options)
        self.page = self.context.new_page()
        self.page.set_default_timeout(PATIENCE)
        self.foreign: list[str] = []
        self.complaints: list[str] = []
        self.page.on("console", self._console)
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.context.route("**/*", self._only_home)
        self.page.goto(served.url)
        self.page.wait_for_selector("#convert-go")

    def _only_home(self, route: object) -> None:
        url = route.request.url
        if url.startswith((self.served.url, "data:", "blob:")):
            route.continue_()
        else:
            self.foreign.append(url)
            route.abort()

    def _console(self, message: object) -> None:
        if message.type == "error":
            self.complaints.append(message.text)

    def give(self, place: str, *paths: Path) -> None:
        self.page.set_input_files(f"{place} input[type=file]", [str(path) for path in paths])
        if place == "#batch-files":
            last = f"#batch-files tr.file:nth-of-type({len(paths)})"
            self.page.wait_for_selector(last)
            self.page.wait_for_timeout(300)
        else:
            self.ready(place)

    def ready(self, place: str = "#convert-audio") -> None:
        """The recording is uploaded and shown."""
        self.page.wait_for_selector(f"{place} [aria-label=Clear]")
        self.page.wait_for_timeout(300)

    def tab(self, name: str) -> None:
        self.page.get_by_role("tab", name=name).click()

    def sound(self, selector: str) -> tuple[np.ndarray, int]:
        """What a player plays, decoded."""
        address = self.page.locator(f"{selector} audio").first.get_attribute("src")
        answer = self.context.request.get(f"{self.served.url}/{address}")
        assert answer.ok, address
        return soundfile.read(io.BytesIO(answer.body()))

    def picture(self, name: str, tmp_path: Path, full_page: bool = True) -> Path:
        self.page.wait_for_timeout(400)
        path = Path(os.environ.get("VCONV_SCREENSHOTS") or tmp_path) / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=str(path), full_page=full_page)
        assert path.stat().st_size > 10_000
        return path

    def scrolls_sideways(self) -> bool:
        return self.page.evaluate(
            "document.documentElement.scrollWidth > document.documentElement.clientWidth + 1"
        )


@pytest.fixture
def visit(browser: object, served: Page) -> Iterator[Visit]:
    there = Visit(browser, served, viewport={"width": 1240, "height": 900})
    yield there
    there.context.close()
    assert there.foreign == []
    assert there.complaints == []


def test_a_file_becomes_another_voice_that_is_heard_while_it_is_made(
    visit: Visit, tmp_path: Path
) -> None:
    visit.picture("convert-before", tmp_path)
    visit.give("#convert-audio", HELLO)
    visit.page.click("#convert-go")
    visit.page.wait_for_selector(RESULT)
    source, rate = soundfile.read(HELLO)
    made, made_rate = visit.sound(".vc-is-result")
    assert len(made) / made_rate == pytest.approx(len(source) / rate, abs=1e-3)
    assert 0.005 < np.sqrt(np.mean(made**2)) < 0.5
    assert abs(np.corrcoef(made, source)[0, 1]) < 0.5  # it is not the recording itself
    # All of it went to the loudspeaker too, from before the result was there.
    visit.page.wait_for_function(f"window.vconv.heard == {len(made)}")
    assert visit.page.locator(f"{RESULT} .vc-pitch path").count() == 2
    assert visit.page.locator(f"{RESULT} .vc-units img").count() == 1
    # One time axis: whatever has one begins and ends in the same places.
    places = {
        (round(box["x"]), round(box["width"]))
        for each in (".vc-scene", ".vc-pitch svg", ".vc-units img", ".vc-axis .vc-field")
        for box in [visit.page.locator(f"{RESULT} {each}").last.bounding_box()]
    }
    assert max(x for x, _ in places) - min(x for x, _ in places) <= 2
    assert min(width for _, width in places) > 300
    assert max(width for _, width in places) - min(width for _, width in places) <= 4
    assert visit.page.locator("#convert-result .vc-facts").inner_text().count("real time") == 1
    visit.picture("convert", tmp_path)


def test_sound_arrives_long_before_the_conversion_is_over(visit: Visit, tmp_path: Path) -> None:
    visit.give("#convert-audio", long_recording(tmp_path / "long.wav", 40))
    visit.page.click("#convert-go")
    visit.page.wait_for_function("window.vconv.heard > 8000")
    assert visit.page.locator(RESULT).count() == 0
    visit.page.click("#convert-cancel")
    visit.page.get_by_text("Cancelled").wait_for()


def test_cancel_stops_the_work_and_leaves_no_file(visit: Visit, tmp_path: Path) -> None:
    visit.give("#convert-audio", long_recording(tmp_path / "long.wav", 50))
    before = set(visit.served.folder().glob("job-*"))
    visit.page.click("#convert-go")
    visit.page.wait_for_selector("#convert-status [role=progressbar][aria-valuenow]")
    visit.picture("converting", tmp_path)
    visit.page.click("#convert-cancel")
    begun = time.monotonic()
    visit.page.get_by_text("Cancelled").wait_for()
    assert time.monotonic() - begun < 5
    assert visit.page.locator(RESULT).count() == 0
    time.sleep(0.5)
    assert set(visit.served.folder().glob("job-*")) == before
    # And the next one goes as if nothing had been.
    visit.page.get_by_role("button", name="Example").first.click()
    visit.ready()
    visit.page.click("#convert-go")
    visit.page.wait_for_selector(RESULT)


def test_a_microphone_is_recorded_and_converted(visit: Visit) -> None:
    visit.page.locator("#convert-audio").get_by_label("Record audio").first.click()
    visit.page.locator("#convert-audio").get_by_role("button", name="Record").first.click()
    visit.page.wait_for_timeout(3000)
    visit.page.locator("#convert-audio").get_by_role("button", name="Stop").first.click()
    visit.page.wait_for_selector("#convert-audio [data-testid=waveform-controls]")
    visit.page.wait_for_timeout(500)
    visit.page.click("#convert-go")
    visit.page.wait_for_selector(RESULT)
    heard, rate = visit.sound(".vc-is-source")
    made, made_rate = visit.sound(".vc-is-result")
    assert 1.5 < len(heard) / rate < 6
    assert np.sqrt(np.mean(heard**2)) > 0.005
    assert len(made) / made_rate == pytest.approx(len(heard) / rate, abs=0.01)
    assert np.sqrt(np.mean(made**2)) > 0.005


def test_voices_are_compared_side_by_side(visit: Visit, tmp_path: Path) -> None:
    visit.tab("Compare")
    visit.give("#compare-audio", HELLO)
    visit.page.click("#compare-go")
    visit.page.wait_for_selector("#compare-result .vc-card:nth-child(3)")
    first, second = (
        visit.sound(f"#compare-result .vc-card:nth-child({number})")[0] for number in (2, 3)
    )
    assert len(first) == len(second)
    assert not np.array_equal(first, second)
    visit.picture("compare", tmp_path)


def test_a_batch_gives_a_zip_and_a_row_for_each_file(visit: Visit, tmp_path: Path) -> None:
    bad = tmp_path / "holiday <b>photo.wav"
    bad.write_bytes(os.urandom(5000))
    (tmp_path / "other").mkdir()
    twin = tmp_path / "other" / "hello.flac"
    soundfile.write(twin, soundfile.read(HELLO)[0][:20_000], 16_000)
    visit.tab("Batch")
    visit.give("#batch-files", HELLO, bad, twin)
    visit.page.click("#batch-go")
    link = visit.page.wait_for_selector(".vc-zip")
    rows = visit.page.locator("#batch-result tbody tr")
    assert rows.count() == 3
    assert "failed" in rows.nth(1).inner_text()
    assert "cannot be read as audio" in rows.nth(1).inner_text()
    assert visit.page.get_by_text("2 converted, 1 failed.").count() == 1
    answer = visit.context.request.get(f"{visit.served.url}/{link.get_attribute('href')}")
    with zipfile.ZipFile(io.BytesIO(answer.body())) as archive:
        assert sorted(archive.namelist()) == ["hello-2.wav", "hello.wav"]
        made, rate = soundfile.read(io.BytesIO(archive.read("hello.wav")))
    assert len(made) == len(soundfile.read(HELLO)[0])
    assert rate == 16_000
    visit.picture("batch", tmp_path)


def test_mistakes_become_sentences_and_the_page_goes_on(visit: Visit, tmp_path: Path) -> None:
    visit.page.click("#convert-go")
    visit.page.get_by_text("There is no recording yet").wait_for()
    silly = tmp_path / "notes.wav"
    silly.write_text("not a recording at all")
    visit.give("#convert-audio", silly)
    visit.page.click("#convert-go")
    said = visit.page.locator("#convert-status [role=alert]").get_by_text("notes.wav")
    said.wait_for()
    assert "cannot be read as audio" in said.inner_text()
    assert "/" not in said.inner_text()  # no path of the server's
    visit.picture("mistake", tmp_path)
    visit.complaints.clear()  # the browser's own player cannot read it either


def test_a_model_is_drawn_with_its_voices(visit: Visit, tmp_path: Path) -> None:
    visit.tab("Model")
    assert visit.page.locator("#model-shown .vc-voice").count() == 25
    samples, _ = visit.sound("#model-shown .vc-voice:nth-child(13)")
    assert np.abs(samples).max() > 0.05
    text = visit.page.locator("#model-shown").inner_text()
    assert "synthetic voices only" in text
    visit.picture("model", tmp_path)


def test_a_training_run_shows_curves_and_samples(visit: Visit, tmp_path: Path) -> None:
    visit.tab("Training")
    assert visit.page.locator("#training-curves .vc-chart").count() >= 6
    assert "3,000 of 4,000" in visit.page.locator("#training-head").inner_text()
    assert "vconv train runs/first/config.yaml" in visit.page.locator(".vc-code").last.inner_text()
    samples, _ = visit.sound("#training-samples .vc-is-result")
    assert len(samples) == 24_000
    visit.picture("training", tmp_path)


def test_new_figures_of_a_run_appear_by_themselves(visit: Visit) -> None:
    visit.tab("Training")
    run = training_run(visit.served.log.parent / "runs", "second")
    visit.page.get_by_role("button", name="Look again").click()
    visit.page.locator("#training-run input").click()
    visit.page.get_by_role("option", name="second").click()
    visit.page.get_by_text("3,000 of 4,000").wait_for()
    with (run / "metrics.jsonl").open("a") as file:
        file.write('l": 3.0}\n{"step": 3100, "nll": 3.0}\n')
    visit.page.get_by_text("3,100 of 4,000").wait_for(timeout=20_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_tab_fits_a_telephone(
    browser: object, served: Page, tmp_path: Path, scheme: str
) -> None:
    small = {"width": 375, "height": 740}
    visit = Visit(browser, served, viewport=small, color_scheme=scheme, has_touch=True)
    visit.page.get_by_role("button", name="Example").first.click()
    visit.ready()
    visit.page.click("#convert-go")
    visit.page.wait_for_selector(RESULT)
    for name in ("Convert", "Compare", "Batch", "Model", "Training"):
        tab = visit.page.get_by_role("tab", name=name)
        if not tab.is_visible():  # behind the bar's own menu
            visit.page.locator(".overflow-menu button").first.click()
            visit.page.locator(".overflow-dropdown").get_by_text(name).click()
        else:
            tab.click()
        visit.picture(f"phone-{scheme}-{name.lower()}", tmp_path)
        assert not visit.scrolls_sideways(), name
    visit.context.close()
    assert visit.foreign == []


def test_it_is_used_by_keyboard_alone(visit: Visit) -> None:
    visit.give("#convert-audio", HELLO)
    visit.page.locator("#convert-go").focus()
    visit.page.keyboard.press("Enter")
    visit.page.wait_for_selector(RESULT)
    seen = []
    for _ in range(40):
        visit.page.keyboard.press("Tab")
        seen.append(
            visit.page.evaluate(
                "document.activeElement.getAttribute('aria-label')"
                " || document.activeElement.innerText"
            )
        )
        if seen[-1].startswith("Position in As"):
            break
    # In the order in which they stand: cancel, the recording, then the result.
    order = [
        next(i for i, label in enumerate(seen) if label.startswith(wanted))
        for wanted in ("Cancel", "Play Your", "Position in Your", "Play As", "Position in As")
    ]
    assert order == sorted(order)
    visit.page.keyboard.press("ArrowRight")
    assert visit.page.evaluate("document.activeElement.getAttribute('aria-valuenow')") == "1.00"


def test_everything_that_can_be_worked_has_a_name(visit: Visit) -> None:
    visit.page.get_by_role("button", name="Example").first.click()
    visit.ready()
    visit.page.click("#convert-go")
    visit.page.wait_for_selector(RESULT)
    nameless = visit.page.evaluate(
        """[...document.querySelectorAll('main button, main input, main a, main [tabindex="0"]')]
        .filter(e => e.offsetParent && e.type !== 'file')
        .filter(e => !(e.getAttribute('aria-label') || e.getAttribute('aria-labelledby')
            || e.innerText || e.title || e.value || (e.labels && e.labels.length)))
        .map(e => e.outerHTML.slice(0, 160))"""
    )
    assert nameless == []
    assert visit.page.evaluate("document.documentElement.lang") == "en"
    unsaid = "[...document.querySelectorAll('main img')].filter(i => !i.alt).length"
    assert visit.page.evaluate(unsaid) == 0


def test_closing_the_page_ends_its_work_and_removes_its_files(
    browser: object, served: Page, tmp_path: Path
) -> None:
    before = set(served.folder().glob("job-*"))
    visit = Visit(browser, served)
    visit.give("#convert-audio", long_recording(tmp_path / "gone.wav", 55))
    visit.page.click("#convert-go")
    visit.page.wait_for_selector("#convert-status [role=progressbar][aria-valuenow]")
    assert set(served.folder().glob("job-*")) - before
    visit.context.close()
    deadline = time.monotonic() + 20
    while set(served.folder().glob("job-*")) - before:
        assert time.monotonic() < deadline, "its files are still there"
        time.sleep(0.2)
    assert not list(served.folder().glob("uploads/*/gone.wav"))
