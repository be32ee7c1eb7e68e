"""The page about scores: what it says, that it needs nothing else, and how it looks in a browser."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from browsing import Text, browse, needs_browser
from score_files import write

from neoxkit.eval.charts import Bars, charts, extent
from neoxkit.eval.page import page
from neoxkit.eval.results import Score, find, read
from neoxkit.eval.scores import collect
from neoxkit.train.plot import LEFT, RIGHT, WIDTH, Plot, Series, draw

if TYPE_CHECKING:
    from selenium.webdriver.remote.webdriver import WebDriver

GOOD, BAD = [1.0] * 40 + [0.0] * 10, [1.0] * 20 + [0.0] * 30


def made(folder: Path) -> str:
    scores = collect([read(path) for path in find([folder])])
    return page(scores, charts(scores))


@pytest.fixture
def pair(tmp_path: Path) -> Path:
    write(tmp_path / "1", {"arc": BAD, "piqa": GOOD}, "models/<i>a")
    write(tmp_path / "2", {"arc": GOOD, "piqa": BAD}, "models/b")
    return tmp_path


@pytest.fixture
def steps(tmp_path: Path) -> Path:
    for step, values in ((100, BAD), (200, GOOD), (300, GOOD)):
        for name in ("runs/x", "runs/y"):
            write(tmp_path / f"{name}{step}", {"arc": values, "piqa": values}, name, step=step)
    return tmp_path


def test_the_page_says_everything(pair: Path) -> None:
    source = made(pair)
    seen = Text(re.sub(r"<rect[^>]*>(<title>.*?</title>)</rect>", "", source))
    assert seen.fetched == []
    assert not re.search(r"https?://(?!www\.w3\.org/2000/svg)", source)
    assert "<i>" not in source
    for said in ("0.4000 ± 0.0700", "+0.4000 ± 0.0700", "better", "worse", "50 pairs", "fp32", "1.0", "Models"):
        assert said in seen.said, said
    assert 'role="region" tabindex="0" aria-label="Scores"' in source
    drawings = [ET.fromstring(each) for each in re.findall(r"<svg.*?</svg>", source)]
    titles = [each.text for each in drawings[0].iter("title")]
    values = ("0.4000 ± 0.0700", "0.8000 ± 0.0571", "0.8000 ± 0.0571", "0.4000 ± 0.0700")
    bars = ("arc, <i>a", "arc, b", "piqa, <i>a", "piqa, b")
    assert titles == [f"{bar}: {value}" for bar, value in zip(bars, values, strict=True)]
    wide = [float(each.get("width") or 0) for each in drawings[0].iter("rect")]
    assert wide[1] == pytest.approx(2 * wide[0], abs=0.2)


def test_bars_begin_at_nothing() -> None:
    def ends(*values: float) -> tuple[float, float]:
        return extent(Bars("acc", ["a"], [("task", [Score(value, 0.05, True) for value in values])]))

    assert ends(0.2, 0.4) == (0, pytest.approx(0.45))
    assert ends(12.0) == (0, pytest.approx(12.05))
    assert ends(-3.0, -1.0) == (pytest.approx(-3.05), 0)
    assert ends(0.0) == (0, pytest.approx(0.05))


def test_a_band_lies_around_its_curve() -> None:
    drawing = draw(Plot("acc", [Series("a", [(0, 0.5), (10, 0.7)], errors=[0.1, 0.2])], str))
    svg = ET.fromstring(re.search(r"<svg.*</svg>", drawing)[0])  # type: ignore[index]
    paths = {path.get("class"): path.get("d") or "" for path in svg.iter("path")}

    def points(of: str) -> list[tuple[float, ...]]:
        return [tuple(map(float, each.split())) for each in paths[of].strip("MZ").split("L")]

    band, line = points("band c1"), points("c1 line")
    assert [x for x, _ in band] == [LEFT, WIDTH - RIGHT, WIDTH - RIGHT, LEFT]
    ys = [y for _, y in band]
    assert (ys[0] + ys[3]) / 2 == pytest.approx(line[0][1], abs=0.1)
    assert (ys[1] + ys[2]) / 2 == pytest.approx(line[1][1], abs=0.1)
    assert ys[2] - ys[1] == pytest.approx(2 * (ys[3] - ys[0]), abs=0.3)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    pytest.importorskip("selenium")
    with browse(tmp_path_factory.mktemp("browser")) as found:
        yield found


def look(browser: WebDriver, folder: Path, dark: bool = False) -> None:
    (folder / "scores.html").write_text(made(folder))
    features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    browser.get((folder / "scores.html").as_uri())


def wrong(browser: WebDriver) -> list[str]:
    return [entry["message"] for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[attr-defined]


@needs_browser
def test_values_under_the_pointer(browser: WebDriver, steps: Path) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    look(browser, steps)
    figure, _ = browser.find_elements(By.TAG_NAME, "figure")
    assert figure.find_element(By.TAG_NAME, "output").text == "0.8, 0.8"
    ActionChains(browser).move_to_element(figure.find_element(By.TAG_NAME, "svg")).perform()
    assert figure.find_element(By.TAG_NAME, "output").text == "step 200: 0.8, 0.8"
    assert [each.text for each in figure.find_elements(By.TAG_NAME, "span")] == ["x", "y"]
    assert wrong(browser) == []


@needs_browser
@pytest.mark.parametrize("dark", [False, True])
def test_light_and_dark(browser: WebDriver, pair: Path, dark: bool) -> None:
    from selenium.webdriver.common.by import By

    look(browser, pair, dark)
    body = browser.find_element(By.TAG_NAME, "body")
    background = [int(each) for each in re.findall(r"\d+", body.value_of_css_property("background-color"))][:3]
    ink = [int(each) for each in re.findall(r"\d+", body.value_of_css_property("color"))][:3]
    assert (sum(background) < sum(ink)) == dark
    fills = {bar.value_of_css_property("fill") for bar in browser.find_elements(By.TAG_NAME, "rect")}
    assert len(fills) == 2
    assert wrong(browser) == []


@needs_browser
def test_what_a_screen_reader_is_told(browser: WebDriver, pair: Path) -> None:
    look(browser, pair)
    tree = browser.execute_cdp_cmd("Accessibility.getFullAXTree", {})["nodes"]
    told = {(node["role"]["value"], node.get("name", {}).get("value", "")) for node in tree if not node["ignored"]}
    assert ("main", "") in told
    assert ("heading", "Scores of <i>a, b") in told
    assert ("region", "Scores") in told
    assert ("rowheader", "arc") in told
    assert ("columnheader", "difference") in told
    assert any(role in ("image", "img") and name.startswith("acc: bars of 2 tasks") for role, name in told)


@needs_browser
def test_a_phone_needs_no_scrolling_to_the_side(browser: WebDriver, pair: Path) -> None:
    metrics = {"width": 380, "height": 800, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        look(browser, pair)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 380
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
