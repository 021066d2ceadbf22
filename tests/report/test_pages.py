"""Pages as text, and in a real browser: nothing overflows, nothing is loaded, nothing is run that a name brings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from runs import HOSTILE, LATIN_HOSTILE_FILE, make_run

from browsing import barriers
from unimetric.report import build
from unimetric.report.build import ReportOptions, write_report
from unimetric.report.compare import compare_runs, write_comparison
from unimetric.report.figures import prompt_figures


class Tags(HTMLParser):
    """Every tag with its attributes, and the text outside of scripts and styles."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report and a comparison full of hostile names, and a report of many datasets."""
    root = tmp_path_factory.mktemp("pages")
    run = make_run(root / "<b>run", HOSTILE, file=LATIN_HOSTILE_FILE.replace(".png", "{}.png"), noise=1.2)
    pictures = root / "<b>run-pictures"
    other = make_run(
        root / "other", HOSTILE, file=LATIN_HOSTILE_FILE.replace(".png", "{}.png"), seed=5, pictures=pictures
    )
    next(pictures.glob("0/0/*.png")).unlink()
    next(pictures.glob("1/0/*.png")).write_bytes(b"no image")
    many = make_run(root / "many", tuple(f"dataset number {n}" for n in range(19)), classes=2, images=3)
    written = {name: root / f"{name}.html" for name in ("report", "comparison", "many")}
    write_report(run, written["report"], ReportOptions(mistakes=100))
    write_comparison(compare_runs([run, other]), written["comparison"])
    write_report(many, written["many"], ReportOptions(mistakes=1))
    return written


@pytest.mark.parametrize("name", ["report", "comparison", "many"])
def test_a_page_holds_all_it_needs_and_allows_no_more(name: str, pages: dict[str, Path]) -> None:
    parsed = Tags(pages[name].read_text())
    for tag, attributes in parsed.tags:
        for attribute, value in attributes.items():
            assert not attribute.startswith("on"), "no handler"
            assert attribute != "style", "the policy refuses it"
            if attribute in ("href", "src", "xlink:href"):
                assert value is not None
                assert value.startswith(("#", "data:"))
        if tag == "img":
            assert attributes["alt"]
        if tag == "th":
            assert attributes["scope"] in ("row", "col")
    policies = [a["content"] for _, a in parsed.tags if a.get("http-equiv") == "Content-Security-Policy"]
    assert len(policies) == 1
    assert policies[0] is not None
    assert policies[0].startswith("default-src 'none'; img-src data:; ")
    assert "unsafe" not in policies[0]
    ids = [a["id"] for _, a in parsed.tags if "id" in a]
    assert len(ids) == len(set(ids))
    targets = {a["href"] for _, a in parsed.tags if (a.get("href") or "").startswith("#")}
    assert {str(target)[1:] for target in targets} <= set(ids)


def test_names_are_text(pages: dict[str, Path]) -> None:
    parsed = Tags(pages["report"].read_text())
    assert [tag for tag, _ in parsed.tags].count("script") == 1
    assert all(tag not in ("b",) or not attributes for tag, attributes in parsed.tags)
    assert not any(attributes.get("src") == "x" for _, attributes in parsed.tags)
    assert HOSTILE[0] in parsed.text
    assert "{{ 7 * 7 }}" in parsed.text
    assert "$x_1^{2$" in parsed.text
    assert any(LATIN_HOSTILE_FILE.split(".")[0] in (attributes.get("alt") or "") for _, attributes in parsed.tags)


def test_every_section_is_there(pages: dict[str, Path]) -> None:
    parsed = Tags(pages["report"].read_text())
    sections = [attributes["id"] for tag, attributes in parsed.tags if tag == "section"]
    linked = [str(attributes["href"])[1:] for tag, attributes in parsed.tags if tag == "a"]
    assert sections == linked
    assert {"numbers", "confusion", "thresholds", "budgets", "space", "mistakes", "worst", "skipped", "origin"} <= set(
        sections
    )
    classes = [str(attributes.get("class")) for _, attributes in parsed.tags]
    assert classes.count("worst") == len(HOSTILE)
    # A curve for each dataset, and one for the union.
    assert classes.count("line") == len(HOSTILE) + 1
    for words in ("not in the catalogue", "Equal error rate", "Alignment", "Uniformity", "Taken for"):
        assert words in parsed.text


def test_bytes_per_image_have_a_row_for_every_size_and_type(pages: dict[str, Path]) -> None:
    page = pages["report"].read_text()
    part = page[page.index('<section id="budgets">') : page.index('<section id="training">')]
    # Whole vectors of 8 numbers and the first 4, each in five ways, under a row of headings.
    assert part.count("<tr>") == 1 + 2 * 5
    text = " ".join(Tags(part).text.split())
    for words in ("float16", "int8", "bit, rescored", "+ 8", "100.0 %"):
        assert words in text


def test_a_measurement_without_budgets_has_no_such_part(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    del metrics["budgets"]
    (folder / "metrics.json").write_text(json.dumps(metrics))
    write_report(folder, tmp_path / "page.html")
    assert "Bytes per image" not in (tmp_path / "page.html").read_text()


def test_a_picture_that_is_gone_becomes_a_box_with_its_name(pages: dict[str, Path]) -> None:
    boxes = [
        attributes for _, attributes in Tags(pages["report"].read_text()).tags if attributes.get("class") == "missing"
    ]
    assert boxes
    assert all((box["aria-label"] or "").startswith("Picture missing: ") for box in boxes)


def test_pictures_are_upright(tmp_path: Path) -> None:
    from unimetric.data.thumbnails import square

    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (20, 0, 40, 20))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned a quarter clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    shown = square(tmp_path / "turned.png", 40)
    assert shown is not None
    assert shown.getpixel((20, 5)) == (255, 0, 0)
    assert shown.getpixel((20, 35)) == (0, 0, 255)
    assert shown.getpixel((2, 20)) == (255, 255, 255)


@pytest.fixture
def opened(browser: Any, request: pytest.FixtureRequest) -> Iterator[tuple[Any, list[str]]]:
    """A page of the width asked for, and what went wrong in it."""
    context = browser.new_context(viewport={"width": request.param, "height": 800})
    page, troubles = context.new_page(), []
    page.on("console", lambda message: troubles.append(f"console: {message.text}"))
    page.on("pageerror", lambda error: troubles.append(f"error: {error}"))
    page.on("dialog", lambda dialog: troubles.append("dialog") or dialog.dismiss())
    page.on(
        "request",
        lambda asked: None if asked.url.startswith(("data:", "file:")) else troubles.append(f"request: {asked.url}"),
    )
    yield page, troubles
    context.close()


# Tables may be wider than the page where they scroll by themselves.
OVERFLOWING = """() => [...document.body.querySelectorAll("*")].filter((element) => {
  if (element.closest(".scroll") && !element.matches(".scroll")) return false;
  if (element.closest("svg") && !element.matches("svg")) return false;
  const box = element.getBoundingClientRect();
  return box.right > document.documentElement.clientWidth + 1 || box.left < -1;
}).map((element) => element.outerHTML.slice(0, 200))"""


TEXT_SIZES = """() => [...document.querySelectorAll("figure svg text")].map((text) => {
  const turned = text.getScreenCTM();
  return parseFloat(getComputedStyle(text).fontSize) * Math.hypot(turned.a, turned.b);
})"""
"""Pixels of every text in a figure."""


CUT_OFF = """() => [...document.querySelectorAll("figure svg")].flatMap((svg) => {
  const whole = svg.getBoundingClientRect();
  return [...svg.querySelectorAll("text")].filter((text) => {
    const box = text.getBoundingClientRect();
    const outside = [whole.left - box.left, box.right - whole.right, whole.top - box.top, box.bottom - whole.bottom];
    return Math.max(...outside) > 1;
  }).map((text) => text.textContent);
})"""
"""Texts that reach out of their figure."""


@pytest.mark.parametrize("opened", [360], indirect=True)
def test_no_text_of_a_figure_is_cut_off(opened: tuple[Any, list[str]], pages: dict[str, Path]) -> None:
    page, _ = opened
    for written in pages.values():
        page.goto(written.as_uri())
        assert page.evaluate(CUT_OFF) == []
    rows = {
        name: np.linspace(-0.04, 0.13, 20, dtype=np.float32) for name in ("photographs", "a long name of a dataset")
    }
    style = (Path(build.__file__).parent / "templates/style.css").read_text(encoding="utf-8")
    page.set_content(
        f"<style>{style}</style><main><figure>{'</figure><figure>'.join(prompt_figures(rows, 'p'))}</figure></main>"
    )
    assert page.evaluate(CUT_OFF) == []
    assert page.locator("svg text").count() > 20


def more(*values: Any) -> Any:
    """A case of which others have each value already."""
    return pytest.param(*values, marks=pytest.mark.soak)


@pytest.mark.parametrize(
    ("name", "width", "scheme"),
    [
        ("report", 1280, "light"),
        ("report", 360, "dark"),
        ("comparison", 1280, "dark"),
        ("comparison", 360, "light"),
        *(more("report", *rest) for rest in [(1280, "dark"), (768, "light"), (768, "dark"), (360, "light")]),
        *(more("comparison", *rest) for rest in [(1280, "light"), (768, "light"), (768, "dark"), (360, "dark")]),
    ],
)
def test_nothing_keeps_people_out(
    name: str, width: int, scheme: str, browser: Any, axe: str, pages: dict[str, Path]
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(pages[name].as_uri())
    assert barriers(page, axe) == []
    page.evaluate("() => document.querySelectorAll('details').forEach((part) => { part.open = true; })")
    assert barriers(page, axe) == []
    context.close()


@pytest.mark.parametrize("opened", [360], indirect=True)
def test_the_index_stays_in_sight(opened: tuple[Any, list[str]], pages: dict[str, Path]) -> None:
    page, _ = opened
    page.goto(pages["report"].as_uri())
    page.get_by_role("link", name="Worst classes").click()
    assert page.locator("nav").bounding_box()["y"] == 0
    heading, nav = page.locator("#worst h2").bounding_box(), page.locator("nav").bounding_box()
    assert nav["height"] <= heading["y"] + 1 < 200


@pytest.mark.parametrize("opened", [320, 768, 1280], indirect=True)
@pytest.mark.parametrize("name", ["report", "comparison", "many"])
def test_in_a_browser(name: str, opened: tuple[Any, list[str]], pages: dict[str, Path]) -> None:
    page, troubles = opened
    requested = []
    page.on("request", lambda asked: requested.append(asked.url))
    page.goto(pages[name].as_uri())
    page.wait_for_function("() => [...document.images].every((image) => image.complete)")
    assert [url for url in requested if not url.startswith("data:")] == [pages[name].as_uri()]
    assert page.evaluate("() => document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    assert page.evaluate(OVERFLOWING) == []
    sizes = page.evaluate("() => [...document.images].map((image) => [image.naturalWidth, image.width])")
    assert all(natural > 0 and shown > 0 for natural, shown in sizes)
    if name == "report":
        assert sizes
    sizes = page.evaluate(TEXT_SIZES)
    assert min(sizes) >= 10.9
    drawn = page.evaluate(
        "() => [...document.querySelectorAll('figure > svg')].map((svg) => [...svg.querySelectorAll('path, use')]"
        ".filter((mark) => mark.getBoundingClientRect().width > 0).length)"
    )
    assert drawn
    assert all(count > 3 for count in drawn)
    assert troubles == []


@pytest.mark.parametrize("opened", [1280], indirect=True)
def test_the_map_says_what_a_point_is(opened: tuple[Any, list[str]], pages: dict[str, Path]) -> None:
    page, troubles = opened
    page.goto(pages["many"].as_uri())
    page.locator("#map").scroll_into_view_if_needed()
    page.locator("#map use").first.hover(force=True)
    assert "dataset number" in page.locator("#map-words").inner_text()
    assert page.locator("#map use.on").count() == 1
    assert troubles == []


def test_without_scripts_points_keep_their_words(browser: Any, pages: dict[str, Path]) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["many"].as_uri())
    assert page.locator("#map-words").is_hidden()
    assert page.locator("#map use title").count() == 19 * 6
    # Nothing else needs the script: folded parts open by themselves.
    page.evaluate("() => document.querySelectorAll('summary').forEach((summary) => summary.click())")
    assert page.evaluate(
        "() => [...document.querySelectorAll('section > *, table, figure')].filter((part) => part.checkVisibility())"
        ".length > 10"
    )
    assert page.locator("canvas, noscript").count() == 0
    context.close()


@pytest.mark.parametrize("name", ["report", "comparison"])
def test_in_print(name: str, browser: Any, pages: dict[str, Path]) -> None:
    """On a sheet of A4 with margins, no figure, picture or table of the page itself is cut off at the right."""
    page = browser.new_page(viewport={"width": 700, "height": 1000})
    page.emulate_media(media="print")
    page.goto(pages[name].as_uri())
    assert page.evaluate(
        "() => [...document.querySelectorAll('figure, img, .tiles, .worst, .plain')].every("
        "(part) => part.getBoundingClientRect().right <= document.documentElement.clientWidth + 1)"
    )
    assert page.locator("nav").is_hidden()
    assert page.locator("#origin table").first.evaluate("(table) => table.getBoundingClientRect().height") > 0
    page.close()
