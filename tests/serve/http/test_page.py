"""The page, in a browser without a screen: chats, texts that are continued, stops, errors, a key, a phone, the dark."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsing import browse, needs_browser
from served import NAME, Live, held, live, until

pytest.importorskip("selenium", reason="needs selenium")

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webdriver import WebDriver

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    with browse(tmp_path_factory.mktemp("browser")) as found:
        yield found


class Page:
    """The page as a person sees it."""

    def __init__(self, browser: WebDriver, server: Live) -> None:
        self.browser, self.server = browser, server
        browser.get(server.root + "/")

    def at(self, name: str) -> Any:
        return self.browser.find_element(By.ID, name)

    def text(self, name: str) -> str:
        return str(self.at(name).get_property("textContent"))

    def said(self) -> list[str]:
        """What stands in the conversation, turn after turn."""
        return [str(each.get_property("textContent")) for each in self.browser.find_elements(By.CLASS_NAME, "said")]

    def lines(self, kind: str) -> list[str]:
        return [str(each.get_property("textContent")) for each in self.browser.find_elements(By.CLASS_NAME, kind)]

    def fill(self, name: str, value: str) -> None:
        self.at(name).clear()
        self.at(name).send_keys(value)

    def ready(self) -> None:
        until(lambda: bool(self.at("send").is_enabled()))

    def ask(self, text: str, *keys: str) -> None:
        """Type something and send it, and wait for the end of what comes of it."""
        before = len(self.lines("why") + self.lines("wrong"))
        self.at("text").send_keys(text, *(keys or (Keys.ENTER,)))
        until(lambda: len(self.lines("why") + self.lines("wrong")) > before)

    def wrong(self) -> list[str]:
        """What the browser itself complains of."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[attr-defined]


@pytest.fixture
def page(browser: WebDriver, server: Live) -> Page:
    found = Page(browser, server)
    found.ready()
    found.fill("most", "12")
    found.fill("temperature", "0")
    return found


def answer(server: Live, messages: list[dict[str, str]]) -> str:
    body = {"messages": messages, "max_tokens": 12, "temperature": 0}
    found: str = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    return found


def test_a_conversation(page: Page, server: Live) -> None:
    assert page.text("name") == NAME
    assert page.browser.title == NAME
    assert page.text("state") == "256 tokens of context"
    assert not page.at("lock").is_displayed()
    messages = []
    for question in ("hello", "and then?"):
        messages.append({"role": "user", "content": question})
        page.ask(question)
        messages.append({"role": "assistant", "content": answer(server, messages)})
        assert page.said() == [each["content"] for each in messages]
    assert all("12 tokens, " in line and "cut off" in line for line in page.lines("why"))
    assert page.at("text").get_property("value") == ""
    page.at("clear").click()
    assert page.said() == []
    page.ask("hello")
    assert page.said() == [each["content"] for each in messages[:2]]  # nothing of what was cleared is left
    assert page.wrong() == []


def test_what_is_said_is_text_and_nothing_else(page: Page) -> None:
    page.ask("<img src=x onerror=\"document.title='owned'\"><b>bold</b>")
    assert page.said()[0].startswith("<img src=x")
    assert page.browser.find_elements(By.CSS_SELECTOR, "#talk img, #talk b") == []
    assert page.browser.title == NAME


def test_nothing_comes_from_elsewhere(page: Page, server: Live) -> None:
    page.ask("hello")
    script = "return performance.getEntriesByType('resource').map(each => each.name)"
    fetched = page.browser.execute_script(script)
    assert fetched
    assert all(name.startswith((server.root, "data:")) for name in fetched)
    policy = server.get("/").headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "connect-src 'self'" in policy


def test_a_line_can_be_broken(page: Page) -> None:
    page.at("text").send_keys("one", Keys.SHIFT + Keys.ENTER + Keys.NULL, "two")
    assert page.at("text").get_property("value") == "one\ntwo"
    page.ask("")
    assert page.said()[0] == "one\ntwo"


@pytest.mark.parametrize("by", ["button", "key", "clear"])
def test_an_answer_can_be_stopped(page: Page, server: Live, by: str) -> None:
    with held(server.serving) as let:
        page.fill("most", "200")
        page.at("text").send_keys("hello", Keys.ENTER)
        until(lambda: server.service.statistics.waiting == 1)
        let(6)
        until(lambda: len(page.said()[1]) > 2)
        assert not page.at("send").is_enabled()
        assert page.at("talk").get_attribute("aria-busy") == "true"
        if by == "key":
            page.at("text").send_keys(Keys.ESCAPE)
        else:
            page.at("stop" if by == "button" else "clear").click()
        until(server.idle)
    page.ready()
    assert page.lines("why") == ([] if by == "clear" else ["stopped"])
    assert not page.at("stop").is_enabled()
    page.fill("most", "3")
    page.ask("again")
    assert len(page.said()) == (2 if by == "clear" else 4)


def test_errors_are_shown_and_nothing_is_lost(page: Page) -> None:
    page.fill("most", "0")
    page.ask("hello")
    assert page.lines("wrong") == ["max_tokens is 0; ask for a token"]
    assert page.at("text").get_property("value") == "hello"
    page.fill("most", "4")
    page.ask("")
    assert page.said()[2:] == ["hello", answer_of(page, "hello", 4)]


def answer_of(page: Page, text: str, most: int) -> str:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": most, "temperature": 0}
    found: str = page.server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
    return found


def test_it_fits_a_phone(page: Page) -> None:
    page.browser.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 640, "deviceScaleFactor": 2, "mobile": True}
    )
    try:
        page.ask("a" * 100)
        wide = "return [document.documentElement.scrollWidth, innerWidth, document.documentElement.scrollHeight]"
        assert page.browser.execute_script(wide) == [360, 360, 640]
        for name in ("text", "send", "stop", "clear", "temperature", "most"):
            box = page.at(name).rect
            assert box["x"] >= 0
            assert box["x"] + box["width"] <= 360
            assert box["y"] + box["height"] <= 640
    finally:
        page.browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_it_is_light_or_dark_as_the_reader_likes(page: Page) -> None:
    def shade(scheme: str) -> tuple[int, int]:
        """How bright page and ink are, of 765."""
        feature = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        page.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", feature)
        script = "const s = getComputedStyle(document.body); return [s.backgroundColor, s.color]"
        found = page.browser.execute_script(script)
        back, ink = (sum(map(int, each[4:-1].split(","))) for each in found)
        return back, ink

    light, dark = shade("light"), shade("dark")
    assert light[0] > 600 > 200 > light[1]
    assert dark[1] > 600 > 200 > dark[0]


def test_a_text_is_continued_where_there_is_no_template(browser: WebDriver, model_folder: Path) -> None:
    with live(model_folder, template=None) as server:
        page = Page(browser, server)
        page.ready()
        page.fill("most", "8")
        page.fill("temperature", "0")
        assert page.text("send") == "Continue"
        body = {"prompt": "def test\n", "max_tokens": 8, "temperature": 0}
        wanted = server.post("/v1/completions", body).json()["choices"][0]["text"]
        page.ask("def test\n", Keys.CONTROL + Keys.ENTER + Keys.NULL)
        (said,) = page.said()
        assert said == "def test\n" + wanted
        assert page.lines("new") == [wanted]
        page.at("send").click()  # what was made is what is continued next
        until(lambda: len(page.lines("why")) == 2)
        assert len(page.said()) == 2
        browser.get("about:blank")


def test_a_key_is_asked_for(browser: WebDriver, model_folder: Path) -> None:
    with live(model_folder, keys=("sesame",)) as server:
        page = Page(browser, server)
        until(lambda: "key" in page.text("state"))
        assert not page.at("send").is_enabled()
        assert page.at("lock").is_displayed()
        page.at("key").send_keys("wrong", Keys.TAB)
        until(lambda: "key" in page.text("state"))
        page.fill("key", "sesame")
        page.at("key").send_keys(Keys.TAB)
        page.ready()
        page.fill("most", "3")
        page.ask("hello")
        assert len(page.said()) == 2
        assert page.lines("wrong") == []
        browser.get("about:blank")
