"""The page in a real browser: nothing complains, every plot is seen, tables sort, night is dark.

It needs Debian's packages chromium and chromium-driver.
"""

import shutil
from pathlib import Path

import pytest

from door import config, tiny
from pipeline import pipeline
from report import report
from train import train
from utils.report.page.page import PLOTS

pytestmark = pytest.mark.long
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking",
    "--disable-component-update", "--no-first-run", "--window-size=1200,900",
)  # fmt: skip
SWEEP = ("epochs=2", "finetune.epochs=2", "data.val_size=64", "seed=0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """One of everything that fills a plot: lambdas, ratios, two methods at one target."""
    folder = tmp_path_factory.mktemp("runs")
    train(tiny("train", folder, "method.strength=0", *SWEEP[:1], *SWEEP[2:]))
    for strength in (1, 2):
        for ratio in (0.6, 0.3):
            here = (f"method.strength={strength}", f"ratio={ratio}", *SWEEP)
            pipeline(tiny("pipeline", folder, *here))
    for method in (("method.strength=0",), ("method=l1_norm",)):
        for seed in (0, 1):
            here = (*method, "target.macs=0.5", *SWEEP[:-1], f"seed={seed}")
            pipeline(tiny("pipeline", folder, *here))
    report(config("report", f"runs_dir={folder}"))
    return folder


@pytest.fixture(scope="module")
def browser(folder, tmp_path_factory):
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.fail("no browser to look at the page with: apt install chromium chromium-driver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    window = webdriver.Chrome(options=options, service=Service(driver))
    window.get((folder / "report" / "index.html").as_uri())
    yield window
    window.quit()


def test_nothing_complains_and_nothing_is_loaded(browser):
    assert browser.get_log("browser") == []
    asked = [entry["message"] for entry in browser.get_log("performance")]
    asked = [message for message in asked if '"Network.requestWillBeSent"' in message]
    assert asked and not any("http://" in message or "https://" in message for message in asked)


@pytest.mark.parametrize("name", [plot.name for plot in PLOTS])
def test_every_plot_is_there_and_can_be_read(browser, name):
    (plot,) = browser.find_elements("css selector", f"#{name} svg.plot")
    assert plot.size["width"] > 400 and plot.size["height"] > 100
    texts = browser.execute_script(
        "return [...arguments[0].querySelectorAll('text')].map(t => {"
        "const b = t.getBoundingClientRect(); return [t.textContent, b.width, b.height]})", plot
    )  # fmt: skip
    assert len(texts) > 4
    assert all(width > 1 and height > 9 for text, width, height in texts if text.strip())


def test_the_page_is_no_wider_than_the_window(browser):
    for width in (1200, 390):
        _window(browser, width)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
    _window(browser, 1200)


def test_a_click_on_a_head_sorts_and_another_one_turns_it_round(browser):
    for column in ("params", "cut", "fine-tuned"):
        head = browser.find_element(
            "xpath", f"//section[@id='results']//th[button[normalize-space(.)='{column}']]"
        )
        table = head.find_element("xpath", "./ancestor::table")
        place = len(head.find_elements("xpath", "./preceding-sibling::th"))
        for direction in ("ascending", "descending"):
            head.find_element("tag name", "button").click()
            assert head.get_attribute("aria-sort") == direction
            cells = [_number(row.find_elements("tag name", "td")[place].text)
                     for row in table.find_elements("css selector", "tbody tr")]  # fmt: skip
            known = [cell for cell in cells if cell is not None]
            assert known == sorted(known, reverse=direction == "descending"), column
            assert cells[: len(known)] == known, "what is missing comes last"
        assert len(table.find_elements("css selector", "th[aria-sort]")) == 1


def _number(text: str) -> float | None:
    first, *more = text.split()
    scale = {"k": 1e3, "M": 1e6, "G": 1e9}.get(more[0] if more else "", 1)
    return None if first == "-" else float(first) * scale


def test_the_night_is_dark_and_plots_follow(browser):
    look = (
        "const of = e => getComputedStyle(e);"
        "return [of(document.body).backgroundColor, of(document.body).color,"
        "of(document.querySelector('#cost svg text')).fill]"
    )
    for theme, darker in (("light", False), ("dark", True)):
        features = [{"name": "prefers-color-scheme", "value": theme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
        back, words, plot = map(_brightness, browser.execute_script(look))
        assert (back < 60) == darker and (words > 200) == darker and (plot > 200) == darker
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def _brightness(colour: str) -> float:
    numbers = [float(part) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return sum(numbers) / 3


def _window(browser, width: int) -> None:
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
