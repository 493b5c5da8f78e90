"""The report in headless Chromium with the network off: no errors; search, sort, hover, click."""

import csv
import re
import shutil
from urllib.parse import quote

import pytest
from selenium import webdriver
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

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


def open_first_feature(browser):
    browser.find_element(By.CSS_SELECTOR, "#table tbody a").send_keys(Keys.ENTER)
    until(browser, "document.getElementById('page').open")


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


def rows_in(path):
    with path.open(encoding="utf-8") as file:
        return list(csv.DictReader(file))


def shown(browser):
    return [row.text for row in browser.find_elements(By.CSS_SELECTOR, "#table tbody th")]


def test_it_opens_offline_without_an_error_and_draws_every_chart(browser, report):
    open_page(browser, report)
    n_charts = browser.execute_script("return charts.size")
    assert n_charts >= 12
    draw_all(browser)
    until(browser, "document.querySelectorAll('.plot .main-svg').length >= arguments[0]", n_charts)
    loaded = browser.execute_script("return performance.getEntriesByType('resource').length")
    assert loaded == 0
    assert browser.get_log("browser") == []


def test_each_chart_can_be_saved_as_svg(browser, report):
    open_page(browser, report)
    draw_all(browser)
    buttons = browser.execute_script(
        "return [...charts.keys()].map((plot) => [plot._context.toImageButtonOptions, "
        "plot.querySelectorAll('.modebar-btn').length])"
    )
    assert all(options["format"] == "svg" and count for options, count in buttons)
    assert len({options["filename"] for options, _ in buttons}) > 5
    saved = "Plotly.toImage([...charts.keys()][0], { format: 'svg' })"
    assert browser.execute_script(f"return {saved}").startswith("data:image/svg")


def test_what_was_measured_during_training_has_charts_beside_the_training_curve(browser, report):
    open_page(browser, report)
    draw_all(browser)
    steps = browser.execute_script(
        "return [...charts.keys()].map((p) => [p.ariaLabel.split('.')[0], p.data.map((d) => d.x)])"
    )
    curves = dict(steps[: next(n for n, one in enumerate(steps) if "Squared" in one[0])])
    (batch, fve, *others) = curves.values()
    assert batch == [[0, 10, 20, 30]] * 2
    assert fve == [[0, 20, 30]], "of the SAE that was measured"
    assert len(others) == 2
    assert "FVE, held out" in curves


def test_search_and_sort(browser, report):
    open_page(browser, report)
    everything = shown(browser)
    assert len(everything) == 32
    browser.find_element(By.ID, "search").send_keys(everything[3])
    assert everything[3] in shown(browser)
    assert len(shown(browser)) < 32
    browser.find_element(By.ID, "search").clear()
    browser.find_element(By.ID, "search").send_keys(Keys.SPACE, Keys.BACKSPACE)

    header = browser.find_element(By.CSS_SELECTOR, 'th[data-key="frequency"]')
    frequency = browser.execute_script("return arguments[0].cellIndex", header)

    def column():
        cells = browser.find_elements(
            By.CSS_SELECTOR, f"#table tbody tr > :nth-child({frequency + 1})"
        )
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


def test_features_are_sorted_by_their_return_score_and_shown_by_its_fifths(browser, report):
    """Together with the search and the choice of an SAE."""
    for sae, name in enumerate(["vsae", "top_k"]):
        open_page(browser, report)
        choose(browser, "sae", sae)
        rows = rows_in(report.with_name("both_files") / f"features_{name}.csv")
        browser.find_element(By.CSS_SELECTOR, 'th[data-key="score"] button').click()
        ordered = sorted(rows, key=lambda row: (-float(row["score"]), int(row["feature"])))
        assert shown(browser) == [row["feature"] for row in ordered]
        choose(browser, "fifth", "5")
        top = [row["feature"] for row in ordered if row["fifth"] == "5"]
        assert shown(browser) == top
        browser.find_element(By.ID, "search").send_keys(top[-1])
        assert top[-1] in shown(browser)
        assert set(shown(browser)) < set(top)
    choose(browser, "map-colour", "score")
    draw_all(browser)
    plot = browser.find_element(By.CSS_SELECTOR, '.plot[data-map="top_k"]')
    colours = browser.execute_script("return arguments[0].data[0].marker.color", plot)
    features = browser.execute_script("return arguments[0].data[0].customdata", plot)
    assert colours == [float(rows[feature]["score"]) for feature in features]
    feature, whole = int(shown(browser)[0]), "#table tbody td:nth-child(10)"
    score = browser.find_element(By.CSS_SELECTOR, whole).text
    assert int(score) == int(float(rows[feature]["score"]))
    open_first_feature(browser)
    facts = browser.find_element(By.CSS_SELECTOR, "#page .facts").text
    assert f"{score}\nreturn score, of 100" in facts
    browser.execute_script("document.getElementById('page').close()")
    assert browser.get_log("browser") == []


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


def test_clusters_have_the_numbers_of_the_csv_file(browser, report):
    open_page(browser, report)
    rows = rows_in(report.with_name("both_files") / "features_vsae.csv")
    in_file = {row["feature"]: row["cluster"] or "–" for row in rows}
    column = "#table td:nth-child(9)"
    in_table = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, column)]
    assert dict(zip(shown(browser), in_table, strict=True)) == in_file
    for feature in shown(browser)[:3]:
        browser.execute_script("location.hash = arguments[0]", f"#feature/vsae/{feature}")
        title = "document.getElementById('page-title').textContent"
        until(browser, f"{title} === arguments[0]", f"Feature {feature} of vsae")
        facts = [fact.text for fact in browser.find_elements(By.CSS_SELECTOR, "#page .facts div")]
        assert f"{in_file[feature]}\ncluster" in facts
    browser.execute_script("document.getElementById('page').close()")


def test_the_map_shows_a_features_tokens_and_opens_it(browser, report):
    open_page(browser, report)
    plot = browser.find_element(By.CSS_SELECTOR, '.plot[data-map="top_k"]')
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plot)
    until(browser, "charts.get(arguments[0]).drawn", plot)
    point = until(browser, "arguments[0].querySelector('.points path')", plot)
    feature = browser.execute_script("return arguments[0].data[0].customdata[0]", plot)
    tokens = browser.execute_script("return arguments[0].data[0].text[0]", plot)
    ActionChains(browser).move_to_element(point).perform()
    hover = until(browser, "document.querySelector('.hoverlayer .hovertext')?.textContent")
    assert hover.startswith("feature ")
    assert f"feature {feature}<br>" in tokens
    until(browser, "document.querySelector('.hoverlayer .hovertext')")
    ActionChains(browser).click().perform()
    until(browser, "document.getElementById('page').open")
    opened = browser.find_element(By.ID, "page-title").text
    # The label's lines follow each other: "feature 12on 3% of tokens".
    (number,) = re.findall(r"^Feature (\d+) of top_k$", opened)
    assert re.match(rf"feature {number}(?!\d)", hover), hover


def test_features_that_come_back_are_sorted_and_colour_the_map(browser, seeded_report):
    open_page(browser, seeded_report)
    ours = browser.find_element(By.CSS_SELECTOR, '.plot[data-map="seed0"]')
    other = browser.find_element(By.CSS_SELECTOR, '.plot[data-map="top_k"]')
    choose(browser, "map-colour", "match")
    draw_all(browser)
    colours = browser.execute_script("return arguments[0].data[0].marker.color", ours)
    features = browser.execute_script("return arguments[0].data[0].customdata", ours)
    rows = rows_in(seeded_report.with_name("seeded_files") / "features_seed0.csv")
    assert colours == [float(rows[feature]["match"]) for feature in features]
    assert isinstance(
        browser.execute_script("return arguments[0].data[0].marker.color", other), str
    )
    counts = browser.execute_script("return document.querySelector('#matches .plot').data[0].y")
    assert sum(counts) == 32, "dead features too"

    header = browser.find_element(By.CSS_SELECTOR, 'th[data-key="returns"]')
    assert header.text == "returns"
    header.find_element(By.TAG_NAME, "button").click()
    column = "#table tbody td:nth-child(11)"
    cells = [cell.text for cell in browser.find_elements(By.CSS_SELECTOR, column)]
    assert cells == sorted((f"{row['returns']}/2" for row in rows), reverse=True)
    open_first_feature(browser)
    feature = int(browser.find_element(By.ID, "page-title").text.split()[1])
    facts = browser.find_element(By.CSS_SELECTOR, "#page .facts").text.replace("\n", " ")
    assert f"{rows[feature]['returns']}/2 seeds" in facts
    browser.execute_script("document.getElementById('page').close()")
    choose(browser, "sae", 1)
    assert {cell.text for cell in browser.find_elements(By.CSS_SELECTOR, column)} == {"–"}
    assert browser.get_log("browser") == []


def test_dark_mode_changes_the_charts(browser, report):
    open_page(browser, report)

    def colour():
        plot = "document.querySelector('#histograms .plot')"
        browser.execute_script(f"return draw({plot})")
        until(browser, f"{plot}.layout")
        return browser.execute_script(f"return {plot}.layout.font.color")

    def emulate(scheme):
        features = [{"name": "prefers-color-scheme", "value": scheme}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})

    emulate("dark")
    dark = colour()
    emulate("light")
    assert colour() != dark


@pytest.mark.parametrize("of", ["report", "seeded_report"])
def test_it_fits_a_phone(browser, of, request):
    report = request.getfixturevalue(of)
    size = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    try:
        open_page(browser, report)
        assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
        menu = browser.find_element(By.TAG_NAME, "nav")
        assert browser.execute_script("return arguments[0].scrollWidth", menu) <= 390
        for link in menu.find_elements(By.TAG_NAME, "a"):
            assert link.rect["x"] >= 0
            assert link.rect["x"] + link.rect["width"] <= 390, link.text
        explanations = browser.find_elements(By.CSS_SELECTOR, ".headline th small")
        assert len(explanations) >= 6
        assert all(one.is_displayed() and one.text for one in explanations)
        open_first_feature(browser)
        assert browser.execute_script("return document.getElementById('page').scrollWidth") <= 390
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@pytest.mark.parametrize("of", ["report", "index", "results"])
def test_no_page_scrolls_sideways_with_the_longest_names(
    browser, of, long_names, long_report, tmp_path
):
    page = long_report
    if of == "index":
        page = write_index(long_names, tmp_path / "index.html")
    elif of == "results":
        show_sweep(from_folder(long_names), tmp_path)
        page = tmp_path / "results.html"
    try:
        for width in (390, 1280):
            size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 500}
            browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
            if of == "report":
                open_page(browser, page)
                draw_all(browser)
            else:
                browser.get(f"file://{quote(str(page))}")
            assert browser.execute_script("return document.documentElement.scrollWidth") <= width
    finally:
        browser.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_tokens_activation_is_shown_without_a_mouse(browser, report):
    open_page(browser, report)
    open_first_feature(browser)
    shaded = ".words span[title]:not(.at)"
    while not (words := browser.find_elements(By.CSS_SELECTOR, f".context {shaded}")):
        next_feature(browser)  # this one fires on one token of each context
    word = words[0]
    context = word.find_element(By.XPATH, "ancestor::div[@class='context']")
    browser.execute_script("arguments[0].click()", word)
    value = context.find_element(By.CLASS_NAME, "value").text
    assert float(value) > 0
    assert value == word.get_attribute("title")
    assert word.get_attribute("class") == "at"
    assert len(context.find_elements(By.CLASS_NAME, "at")) == 1


def test_many_saes_wide_dictionaries_and_negative_features_are_drawn(browser, report):
    open_page(browser, report)
    lines = browser.execute_script(
        "return [...Array(36).keys()].map((i) => JSON.stringify(series(LIGHT, { place: i })))"
    )
    assert len(set(lines)) == 36
    made = "stepLines([{ label: 'a', place: 0 }], () => new Array(300000).fill(1), 40, LIGHT)[0].y"
    assert sum(browser.execute_script(f"return {made}")) == 300_000
    made = "context({ tokens: ['a', 'b'] }, [-2, 0, 0, [0, 1], [0, -2, 1, -1]], -2)"
    words = browser.execute_script(
        f"return [...{made}.querySelectorAll('.words span')].map((word) => word.style.background)"
    )
    assert [word.rpartition(",")[2].strip(" )") for word in words] == ["0.80", "0.46"]


def test_explanations_are_searched_sorted_and_shown_as_text(browser, explained_report):
    open_page(browser, explained_report)
    everything = len(shown(browser))
    browser.find_element(By.ID, "search").send_keys("unmistakable")
    assert 0 < len(shown(browser)) == 3 < everything
    cell = browser.find_element(By.CSS_SELECTOR, "#table tbody .explanation").text
    assert cell.startswith("=1+1</script><script>")
    browser.find_element(By.ID, "search").clear()
    browser.find_element(By.ID, "search").send_keys(Keys.SPACE, Keys.BACKSPACE)
    choose(browser, "sae", "1")
    browser.find_element(By.CSS_SELECTOR, 'th[data-key="explanation_score"] button').click()
    header = browser.find_element(By.CSS_SELECTOR, 'th[data-key="explanation_score"]')
    place = browser.execute_script("return arguments[0].cellIndex + 1", header)
    cells = browser.find_elements(By.CSS_SELECTOR, f"#table tbody tr > :nth-child({place})")
    scores = [float(one.text) for one in cells[:5]]
    assert scores == sorted(scores, reverse=True)
    assert cells[5].text == "–"
    open_first_feature(browser)
    page = browser.find_element(By.ID, "page").text
    assert "the text '" in page
    assert "the scorer said" in page
    browser.execute_script("document.getElementById('page').close()")
    assert "owned" not in browser.title
    assert browser.get_log("browser") == []


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
