"""The page in a real browser: nothing complains, charts are drawn, tables sort and are filtered,
a run is shown, night is dark, paper is short.

It needs Debian's packages chromium and chromium-driver.
"""

import re
import shutil
from pathlib import Path

import pytest
from selenium.webdriver.support.ui import WebDriverWait

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
def test_every_chart_is_drawn_and_can_be_read(browser, name):
    browser.execute_script("document.querySelectorAll('details').forEach(d => d.open = true)")
    browser.execute_script("dispatchEvent(new Event('beforeprint'))")
    drawn = WebDriverWait(browser, 20).until(
        lambda window: [
            chart for chart in window.find_elements("css selector", f"#{name} .chart svg")
            if chart.size["width"] > 200 and chart.size["height"] > 40
        ]
    )  # fmt: skip
    assert len(drawn) == len(browser.find_elements("css selector", f"#{name} .chart"))
    texts = browser.execute_script(
        "return [...arguments[0].querySelectorAll('text')].map(t => {"
        "const b = t.getBoundingClientRect(); return [t.textContent, b.width, b.height]})", drawn[0]
    )  # fmt: skip
    assert len(texts) > 2
    assert all(width > 1 and height > 6 for text, width, height in texts if text.strip())
    assert not browser.find_elements("css selector", ".chart.broken")


@pytest.mark.parametrize(("width", "height"), [(1400, 900), (390, 844)])
def test_accuracy_is_on_the_first_screen(browser, width, height):
    _window(browser, width, height)
    browser.execute_script("scrollTo(0, 0)")
    heads = browser.find_elements("css selector", "#results th, .card b")
    seen = [head.rect for head in heads if "%" in head.text]
    assert any(r["x"] + r["width"] <= width and r["y"] + r["height"] <= height for r in seen)
    _window(browser, 1200)


def test_a_filter_leaves_the_rows_that_fit(browser):
    box = browser.find_element("css selector", ".filter input")
    rows = browser.find_elements("css selector", "#results tbody tr")
    box.send_keys("l1_norm")
    left = [row.text for row in rows if row.is_displayed()]
    assert left and all("l1_norm" in text for text in left) and len(left) < len(rows)
    browser.execute_script("arguments[0].value = ''", box)
    box.send_keys(" ")
    assert all(row.is_displayed() for row in rows)


def test_a_row_leads_to_its_run_and_two_runs_show_where_they_differ(browser):
    link = browser.find_element("css selector", "#results tbody tr a")
    browser.execute_script("arguments[0].click()", link)
    dialog = browser.find_element("id", "run")
    WebDriverWait(browser, 10).until(lambda _: dialog.is_displayed())
    assert "recipe.batch_size" in dialog.text and "python" in dialog.text
    names = browser.execute_script("return Object.keys(details.runs)")
    script = "const b = document.querySelector('#run input'); b.value = arguments[0]; b.onchange()"
    browser.execute_script(script, names[-1])
    marked = WebDriverWait(browser, 10).until(
        lambda window: window.find_elements("css selector", "#run td.differs")
    )
    assert len(marked) >= 2 and names[-1] in dialog.text
    browser.find_element("css selector", "#run .close").click()
    assert not dialog.is_displayed()
    browser.execute_script("location.hash = 'run=constructor'; show()")  # what every object has
    assert not dialog.is_displayed()
    browser.execute_script("location.hash = ''")


def test_it_prints_on_a_dozen_sheets_at_most(browser):
    import base64

    paper = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert 1 <= len(re.findall(rb"/Type\s*/Page[^s]", paper)) <= 12


def test_the_page_is_no_wider_than_the_window(browser):
    for width in (1200, 390):
        _window(browser, width)
        wide = browser.execute_script("return document.documentElement.scrollWidth")
        assert wide <= width
    _window(browser, 1200)


def test_a_click_on_a_head_sorts_and_another_one_turns_it_round(browser):
    for column in ("params", "cut", "test %"):
        head = browser.find_element(
            "xpath", f"//section[@id='results']//th[button[normalize-space(.)='{column}']]"
        )
        table = head.find_element("xpath", "./ancestor::table")
        place = len(head.find_elements("xpath", "./preceding-sibling::th"))
        for direction in ("ascending", "descending"):
            browser.execute_script("arguments[0].querySelector('button').click()", head)
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
        "of(document.querySelector('#cost .chart svg text')).fill]"
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


def _window(browser, width: int, height: int = 900) -> None:
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
