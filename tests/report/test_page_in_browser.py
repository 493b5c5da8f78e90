"""The report in headless Chromium with the network off: no errors; search, sort, hover, click."""

import re
import shutil
from dataclasses import replace
from urllib.parse import quote

import pytest
from report_runs import QUICK
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from dictionary_learning_ext.cli import main
from dictionary_learning_ext.features import html as pages
from dictionary_learning_ext.report.many_runs import from_folder
from dictionary_learning_ext.report.runs_page import show_sweep, write_index

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (CHROMIUM and DRIVER),
        reason="no chromium with a chromedriver (apt-get install chromium-driver)",
    ),
]
WAIT_SECONDS = 60


@pytest.fixture(scope="module")
def browser():
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for flag in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "window-size=1280,900"):
        options.add_argument(f"--{flag}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(DRIVER))
    driver.execute_cdp_cmd("Network.enable", {})
    offline = {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0}
    driver.execute_cdp_cmd("Network.emulateNetworkConditions", offline)
    yield driver
    driver.quit()


def until(browser, script, *arguments):
    """Wait until a script gives something true, and return it."""
    return WebDriverWait(browser, WAIT_SECONDS, 0.1).until(
        lambda driver: driver.execute_script(f"return {script}", *arguments)
    )


def open_page(browser, path, fragment=""):
    browser.get("about:blank")
    browser.get_log("browser")  # another page's, which are then gone
    browser.get(f"file://{quote(str(path))}{fragment}")
    until(browser, "document.documentElement.dataset.ready === 'yes'")


def next_feature(browser):
    shown = browser.find_element(By.ID, "page-title").text
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    until(browser, "document.getElementById('page-title').textContent !== arguments[0]", shown)


def choose(browser, id, value):
    script = "const it = document.getElementById(arguments[0]); it.value = arguments[1];"
    script += "it.dispatchEvent(new Event('change'))"
    browser.execute_script(script, id, value)


def draw_all(browser):
    browser.execute_script("return Promise.all([...charts.keys()].map((plot) => draw(plot)))")
    until(browser, "[...charts.values()].every((chart) => chart.drawn)")


def shown(browser):
    return [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#table tbody th")]


def test_it_opens_offline_without_an_error_and_draws_every_chart(browser, report):
    open_page(browser, report)
    n_charts = browser.execute_script("return charts.size")
    assert n_charts >= 8
    draw_all(browser)
    until(browser, "document.querySelectorAll('.plot .main-svg').length >= arguments[0]", n_charts)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    assert browser.get_log("browser") == []


def test_search_and_sort(browser, report):
    open_page(browser, report)
    everything = shown(browser)
    assert len(everything) == 32
    browser.find_element(By.ID, "search").send_keys(everything[3])
    assert everything[3] in shown(browser)
    assert len(shown(browser)) < 32
    browser.find_element(By.ID, "search").clear()
    browser.find_element(By.ID, "search").send_keys(Keys.SPACE, Keys.BACKSPACE)

    header = browser.find_element(By.CSS_SELECTOR, 'th[data-key="firing_rate"]')
    place = browser.execute_script("return arguments[0].cellIndex", header)

    def column():
        cells = browser.find_elements(By.CSS_SELECTOR, f"#table tbody tr > :nth-child({place + 1})")
        return [float(cell.text.rstrip("%")) for cell in cells if cell.text != "–"]

    header.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") == "descending"
    assert column() == sorted(column(), reverse=True)
    header.find_element(By.TAG_NAME, "button").click()
    assert header.get_attribute("aria-sort") == "ascending"
    assert column() == sorted(column())

    browser.find_element(By.ID, "search").send_keys("no feature fires on this")
    assert shown(browser) == []
    assert browser.find_element(By.ID, "found").text.startswith("0 features")


def test_a_feature_opens_from_the_table_and_by_keys(browser, report):
    open_page(browser, report)
    browser.find_element(By.TAG_NAME, "body").send_keys("/")
    assert browser.switch_to.active_element.get_attribute("id") == "search"
    link = browser.find_element(By.CSS_SELECTOR, "#table tbody a")
    feature = link.text
    link.send_keys(Keys.ENTER)
    title = browser.find_element(By.ID, "page-title")
    until(browser, "document.getElementById('page').open")
    assert title.text == f"Feature {feature} of vsae"
    assert len(browser.find_elements(By.CSS_SELECTOR, "#page .context")) >= 2
    headings = [h.text for h in browser.find_elements(By.CSS_SELECTOR, "#page h3")]
    assert {"Strongest contexts", "Promotes", "Suppresses", "Nearest directions"} <= set(headings)
    first = title.text
    next_feature(browser)
    browser.switch_to.active_element.send_keys(Keys.ARROW_LEFT)
    until(browser, "document.getElementById('page-title').textContent === arguments[0]", first)
    browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    until(browser, "!document.getElementById('page').open")
    assert "#feature" not in browser.current_url
    assert browser.get_log("browser") == []


@pytest.mark.parametrize("of", ["report", "index", "results"])
def test_no_page_scrolls_sideways_with_the_longest_names(
    browser, of, long_names, long_report, tmp_path
):
    page = long_report
    if of == "index":
        page = write_index(long_names, tmp_path / "index.html")
    elif of == "results":
        found = enumerate(from_folder(long_names))
        several_k = [replace(run, settings={**run.settings, "k": 4 << n}) for n, run in found]
        show_sweep(several_k, tmp_path)
        page = tmp_path / "results.html"
    try:
        for width in (390, 1280):
            size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            if of == "report":
                open_page(browser, page)
                draw_all(browser)
            elif of == "results":
                open_page(browser, page)
            else:
                browser.get(f"file://{quote(str(page))}")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_an_injected_script_does_not_run_with_escaping_switched_off(
    browser, runs, tmp_path, monkeypatch
):
    named = shutil.copytree(
        runs[0], tmp_path / "<img src=x onerror=document.body.dataset.owned='yes'>"
    )
    environment = pages.jinja2.Environment
    monkeypatch.setattr(
        pages.jinja2,
        "Environment",
        lambda **given: environment(**given | {"autoescape": False}),
    )
    page = tmp_path / "page.html"
    assert main(["report", str(named), "--out", str(page), *QUICK]) == 0
    html = page.read_text(encoding="utf-8")
    policy = re.search(r'<meta http-equiv="Content-Security-Policy"[^>]*>\n', html)[0]
    open_page(browser, page)
    assert browser.find_elements(By.CSS_SELECTOR, "header img")
    assert browser.execute_script("return document.body.dataset.owned") is None
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert all("Content Security Policy" in message for message in refused)
    page.write_text(html.replace(policy, ""), encoding="utf-8")
    open_page(browser, page)
    until(browser, "document.body.dataset.owned")
    browser.get_log("browser")


def test_hostile_text_does_nothing(browser, hostile_report):
    open_page(browser, hostile_report)
    draw_all(browser)
    for link in browser.find_elements(By.CSS_SELECTOR, "#table tbody a"):
        href = link.get_attribute("href")
        browser.execute_script("location.hash = new URL(arguments[0]).hash", href)
        until(browser, "document.getElementById('page').open")
        browser.execute_script("document.getElementById('page').close()")
        until(browser, "!document.getElementById('page').open && !location.hash")
    assert "owned" not in browser.title
    assert browser.find_elements(By.CSS_SELECTOR, "main img, dialog img, main script") == []
    assert browser.get_log("browser") == []
