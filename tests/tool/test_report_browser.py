"""The report's page in a real browser: what a reader sees, chooses and is told, and what a hostile name cannot do."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("pandas", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("matplotlib", reason="the report needs the extra pytest-attn[report]")
pytest.importorskip("jinja2", reason="the report needs the extra pytest-attn[report]")

from attn_impls.problem import CAUSAL, FULL, Problem
from pytest_attn.perf.record import Record, Run
from pytest_attn.report import words, write_report
from tests.tool.browser import chromium
from tests.tool.runs import run_of_problems

IMPLS = ("naive", "sdpa-flash", "flash-attn")
PROBLEMS = [Problem(2, 4, 4, s, s, 64, "bf16", mask) for s in (512, 1024, 65536) for mask in (FULL, CAUSAL)]
HOSTILE = ("</script><script>window.hurt=1</script>", '"><img src=x onerror=window.hurt=1>', "\ud800'};hurt=1//\u2028")
Open = Callable[..., Any]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as driver:
        yield driver


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report([run_of_problems(PROBLEMS, IMPLS, directions=("fwd", "bwd"))], tmp_path_factory.mktemp("one"))


@pytest.fixture
def show(browser: Any, page: Path) -> Open:
    """Open a page in a window of that width, and return the driver."""

    def opened(fragment: str = "", width: int = 1280, path: Path = page, scheme: str = "light") -> Any:
        browser.get("about:blank")  # else a new fragment is no new page
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        media = {"media": "", "features": [{"name": "prefers-color-scheme", "value": scheme}]}
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        for log in ("browser", "performance"):
            browser.get_log(log)
        browser.get(path.as_uri() + (f"#{fragment}" if fragment else ""))
        return browser

    return opened


def seen(driver: Any, selector: str) -> list[str]:
    """Return the text, or where there is none the label, of what ``selector`` finds and a reader can see."""
    script = """return [...document.querySelectorAll(arguments[0])]
        .filter(e => e.checkVisibility() && e.getClientRects().length)
        .map(e => e.textContent.trim() || e.getAttribute("aria-label") || e.id)"""
    return driver.execute_script(script, selector)


def choose(driver: Any, control: str) -> None:
    driver.execute_script("document.getElementById(arguments[0]).click()", control)


def keys(driver: Any, *pressed: str) -> None:
    from selenium.webdriver import ActionChains

    ActionChains(driver).send_keys(*pressed).perform()


def complaints(driver: Any) -> list[str]:
    return [entry["message"] for entry in driver.get_log("browser")]


def requests(driver: Any) -> list[str]:
    messages = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    sent = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [url for url in sent if not url.startswith("data:")]


def test_page_loads_from_disk_alone_without_complaints(show: Open, page: Path) -> None:
    driver = show()
    assert complaints(driver) == []
    assert requests(driver) == [page.as_uri()]
    assert "faster than naive" in seen(driver, "ul.findings li")[0]


def test_every_figure_says_in_words_what_it_shows(show: Open) -> None:
    unnamed = """return [...document.querySelectorAll("main svg")].filter(svg =>
        svg.getAttribute("role") !== "img" || (svg.getAttribute("aria-label") || "").length < 40).length"""
    driver = show()
    assert driver.execute_script(unnamed) == 0
    assert driver.execute_script("return document.querySelectorAll('main svg').length") > 20
    headless = """return [...document.querySelectorAll("table")].filter(table =>
        !table.caption || !table.caption.textContent.trim() || table.querySelector("th:not([scope])")).length"""
    assert driver.execute_script(headless) == 0


def test_choices_hide_what_names_another_value_and_nothing_else(show: Open) -> None:
    driver = show()
    titles = "#seq figcaption h3"
    assert seen(driver, titles) == ["How does forward time grow with sequence length?"]
    roofline = seen(driver, "#roofline figcaption h3")
    choose(driver, "metric-memory")
    choose(driver, "direction-bwd")
    assert seen(driver, titles) == ["How does backward peak memory grow with sequence length?"]
    # A metric that nobody chooses from hides nothing.
    assert len(seen(driver, "#roofline figcaption h3")) == len(roofline) > 0
    assert {caption[:26] for caption in seen(driver, "#all caption")} == {"Peak memory over the inputs"[:26]}
    assert all("causal" in alt or "full" in alt for alt in seen(driver, "#seq svg.panel"))
    before = len(seen(driver, "#seq svg.panel"))
    choose(driver, "mask-causal")
    (alt,) = seen(driver, "#seq svg.panel")
    assert before == 2
    assert "causal mask" in alt


def test_an_implementation_goes_from_figures_tables_and_records(show: Open) -> None:
    driver = show()
    places = ("#overview svg [data-i='1']", "#seq svg [data-i='1']", "#all th[data-i='1']", "#all td[data-i='1']")
    everywhere = (*places, "#all tr[data-i='1']")
    assert all(seen(driver, place) for place in everywhere)
    assert "sdpa-flash" in seen(driver, "#all thead th")
    choose(driver, "impl-1")
    assert not any(seen(driver, place) for place in everywhere)
    assert {"sdpa-flash"} & {*seen(driver, "#all th"), *seen(driver, "#first-calls th")} == set()
    assert {"naive", "flash-attn"} <= set(seen(driver, "#all thead th"))
    assert set(seen(driver, "#table tbody th")) == {"naive", "flash-attn"}


def test_a_view_is_kept_in_the_address(show: Open) -> None:
    driver = show()
    for control in ("metric-tflops", "mask-causal", "impl-0", "theme-dark"):
        choose(driver, control)
    fragment = driver.execute_script("return location.hash.slice(1)")
    assert fragment == "metric=tflops&mask=causal&theme=dark&hide=naive"
    again = show(fragment + "&find=flash-attn&sort=-time&to=records")
    assert again.execute_script("return [...document.querySelectorAll(':checked')].map(e => e.id)") == [
        *("impl-1", "impl-2", "direction-fwd", "metric-tflops", "mask-causal", "theme-dark")
    ]
    assert set(seen(again, "#table tbody th")) == {"flash-attn"}
    assert again.execute_script("return document.querySelector('#records').getBoundingClientRect().top") < 900
    assert complaints(show("metric=none&hide=%E0%A4%A&nonsense&to=../x&sort=-")) == []


def test_hovering_and_a_click_tell_a_record(show: Open) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.by import By

    driver = show("hide=naive,sdpa-flash&to=seq")
    mark = driver.find_element(By.CSS_SELECTOR, "#seq svg.panel [data-i='2'] [data-r]")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center', behavior: 'instant'})", mark)
    ActionChains(driver).move_to_element(mark).perform()
    (tip,) = seen(driver, "#tip")
    assert tip.startswith("flash-attn")
    assert re.search(r"\d µs, p10–p90 [\d.]+ µs – [\d.]+ µs · [\d.]+×", tip)
    assert "forward, batch 2, length 512, 4 heads" in tip
    ActionChains(driver).click().perform()
    (dialog,) = seen(driver, "dialog[open]")
    for said in ("flash_attn_kernel", "100 %", "SM clock", "b2-h4-kv4-q512-k512-d64-bf16-full"):
        assert said in dialog
    keys(driver, "\ue00c")  # Escape
    assert seen(driver, "dialog[open]") == []


def test_values_are_told_to_the_keyboard(show: Open) -> None:
    right, down, enter, tab = "\ue014", "\ue015", "\ue007", "\ue004"
    driver = show()
    keys(driver, tab)
    assert seen(driver, ":focus") == ["Skip to the figures"]
    keys(driver, enter)
    assert driver.execute_script("return document.activeElement.id") == "overview"
    keys(driver, tab)
    assert driver.execute_script("return document.activeElement.matches('#overview svg.panel:focus-visible')")
    outline = "return getComputedStyle(document.activeElement).outlineStyle"
    assert driver.execute_script(outline) == "solid"
    keys(driver, right)
    (first,) = seen(driver, "#tip")
    keys(driver, down)
    (second,) = seen(driver, "#tip")
    assert {first.split()[0][:5], second.split()[0][:5]} <= {"naive", "sdpa-", "flash"}
    assert first != second
    keys(driver, enter)
    assert len(seen(driver, "dialog[open] dt")) > 10


def test_no_control_is_out_of_reach_of_the_keyboard(show: Open) -> None:
    script = """return [...document.querySelectorAll("a[href],button,input,summary,svg.panel[data-mask]")]
        .filter(e => e.getClientRects().length && e.tabIndex < 0).map(e => e.outerHTML.slice(0, 80))"""
    assert show().execute_script(script) == []


def test_records_are_found_and_sorted(show: Open) -> None:
    from selenium.webdriver.common.by import By

    driver = show()
    box = driver.find_element(By.ID, "query")
    box.send_keys("naive oom")
    assert seen(driver, "#found") == ["2 of 36 records"]
    assert all("out of memory: asked for" in cell for cell in seen(driver, "#table tbody td:last-child"))
    box.clear()
    box.send_keys("bf16")
    for order, sign in (("ascending", 1), ("descending", -1)):
        driver.execute_script("document.querySelector('#table th[data-name=time] button').click()")
        assert driver.execute_script("return document.querySelector('[data-name=time]').ariaSort") == order
        times = [seconds(text) for text in seen(driver, "#table tbody td:nth-child(5)") if text[:1].isdigit()]
        assert len(times) == 16
        assert times == sorted(times, reverse=sign < 0)
        # What has no time comes last either way.
        assert seen(driver, "#table tbody td:nth-child(4)")[-2:] == ["out of memory"] * 2


def seconds(text: str) -> float:
    value, unit = text.split()
    return float(value) * {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]


def test_the_page_writes_numbers_as_the_figures_do(show: Open) -> None:
    driver = show()
    data = json.loads(driver.execute_script("return document.querySelector('#data').textContent"))
    columns = data["columns"]
    rows = [r for r, direction in enumerate(columns["direction"]) if data["directions"][direction][0] == "fwd"]
    cells = {"time": (5, words.seconds), "speedup": (7, words.times), "memory": (9, words.size)}
    for name, (place, show_value) in cells.items():
        values = [columns[name][r] for r in rows]
        expected = ["" if value is None else show_value(value) for value in values]
        assert seen(driver, f"#table tbody tr > :nth-child({place})") == expected


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_wider_than_the_window(show: Open, width: int) -> None:
    driver = show(width=width)
    assert driver.execute_script("return document.documentElement.scrollWidth") == width
    if width == 390:
        assert seen(driver, "#choices") == []  # closed until it is asked for
        driver.execute_script("document.querySelector('#side > summary').click()")
        assert seen(driver, "#choices") != []
    choose(driver, "metric-memory")
    assert driver.execute_script("return document.documentElement.scrollWidth") == width


def luminance(colour: str) -> float:
    """Return WCAG's relative luminance of ``rgb(r, g, b)`` or ``#rrggbb``."""
    parts = [int(part, 16) for part in re.findall("..", colour[1:])] if colour[0] == "#" else _rgb(colour)
    linear = [p / 255 / 12.92 if p / 255 <= 0.04045 else ((p / 255 + 0.055) / 1.055) ** 2.4 for p in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _rgb(colour: str) -> list[int]:
    return [int(float(part)) for part in re.findall(r"[\d.]+", colour)[:3]]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_both_schemes(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    pairs = dict(re.findall(r"--(\w+):light-dark\((#\w{6},#\w{6})\)", text))
    colours = {name: pair.split(",") for name, pair in pairs.items()}
    for scheme in (0, 1):
        for ink in ("ink", "faint", "link"):
            for ground in ("paper", "soft"):
                assert contrast(colours[ink][scheme], colours[ground][scheme]) >= 4.5, (ink, ground, scheme)
        assert contrast(colours["edge"][scheme], colours["paper"][scheme]) >= 3  # WCAG 1.4.11, edges of controls
    inks = {match for tag in re.findall(r"<text[^>]*>", text) for match in re.findall(r"fill: ([^;\"]+)", tag)}
    assert inks <= {"var(--ink)", "var(--faint)"}


@pytest.mark.parametrize(
    ("scheme", "fragment", "dark"), [("dark", "", True), ("light", "theme=dark", True), ("dark", "theme=light", False)]
)
def test_colours_follow_the_reader_and_the_choice(show: Open, scheme: str, fragment: str, dark: bool) -> None:
    driver = show(fragment, scheme=scheme)
    ground, ink = driver.execute_script("""const body = getComputedStyle(document.body);
        return [body.backgroundColor, getComputedStyle(document.querySelector("#seq svg.panel text")).fill]""")
    assert (luminance(ground) < 0.1) is dark
    assert contrast(ground, ink) >= 4.5


def test_print_shows_figures_without_controls(show: Open) -> None:
    driver = show("theme=dark")
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print", "features": []})
    assert seen(driver, "aside") == []
    assert len(seen(driver, "#seq svg.panel")) == 2
    assert luminance(driver.execute_script("return getComputedStyle(document.body).backgroundColor")) > 0.9


def test_hostile_names_are_text(show: Open, tmp_path: Path) -> None:
    def change(record: Record) -> Record:
        kernels = ({"name": HOSTILE[1], "share": 1.0, "count": 1},)
        impl = HOSTILE[IMPLS.index(record.impl)]
        return dataclasses.replace(record, impl=impl, note=HOSTILE[0], kernels=kernels)

    run = run_of_problems(PROBLEMS[:4], IMPLS, directions=("fwd",), change=change, device=HOSTILE[0])
    hostile: dict[str, Any] = {HOSTILE[1]: {HOSTILE[0]: HOSTILE[2]}}
    path = write_report([dataclasses.replace(run, environment=hostile, grid=HOSTILE[0])], tmp_path, [HOSTILE[0]])
    driver = show(path=path)
    assert complaints(driver) == []
    driver.execute_script("document.querySelector('#table tbody button').click()")
    assert "onerror=window.hurt" in seen(driver, "dialog[open]")[0]
    assert driver.execute_script("return window.hurt") is None
    assert driver.execute_script("return document.querySelectorAll('img,iframe,script').length") == 2
    assert requests(driver) == [path.as_uri()]
    # Were a name taken for markup after all, the page's policy would still not run it.
    driver.execute_script("""const s = document.createElement("script"); s.textContent = "window.hurt = 1";
        document.body.append(s); const d = document.createElement("div");
        d.innerHTML = "<img src=x onerror='window.hurt = 1'>"; document.body.append(d)""")
    assert driver.execute_script("return window.hurt") is None


def test_runs_can_be_told_apart_and_hidden(show: Open, tmp_path: Path) -> None:
    runs = [
        run_of_problems(PROBLEMS[:4], IMPLS, directions=("fwd",), device=device, faster=faster)
        for device, faster in (("GPU one", 1.0), ("GPU two", 2.0))
    ]
    driver = show(path=write_report(runs, tmp_path))
    assert [label[:9] for label in seen(driver, "#runs label")] == ["A GPU one", "B GPU two"]
    same = """return [...document.querySelectorAll("#seq [data-i='1'] > path")].map(e => getComputedStyle(e).stroke)"""
    assert len(set(driver.execute_script(same))) == 1  # one colour for an implementation, whatever the run
    assert seen(driver, "#seq svg [data-n='1']")
    choose(driver, "run-1")
    assert not seen(driver, "#seq svg [data-n='1']")
    assert seen(driver, "#seq svg [data-n='0']")
    assert driver.execute_script("return location.hash") == "#without=GPU%20two"


@pytest.mark.parametrize("count", [0, 1])
def test_next_to_nothing_is_a_page_too(show: Open, tmp_path: Path, count: int) -> None:
    run = run_of_problems(PROBLEMS[:1], IMPLS[:1], directions=("fwd",))
    path = write_report([Run(run.records[:count], "own", run.machine, run.environment)], tmp_path)
    driver = show(path=path, width=390)
    assert complaints(driver) == []
    assert driver.execute_script("return document.documentElement.scrollWidth") == 390
    assert seen(driver, "#found") == [f"{count} of {count} records"]
