"""The page of an audit in a real browser: keys, filters, saved decisions, and nobody kept out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from audit_pictures import picture
from browsing import barriers, overflows
from unimetric.curation.findings import Finding
from unimetric.curation.page import review_page
from unimetric.data.catalog import Item


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("page")
    items = []
    for index in range(6):
        picture(index).save(folder / f"{index}.png")
        items.append(Item(folder / f"{index}.png", "a <b>", "set"))
    missing = Item(folder / "missing.png", "a", "set")
    findings = [
        Finding("near-copy", 0.9, tuple(items[:2]), "Two images of one picture.", drop=(items[1],)),
        Finding("wrong-label", 0.8, (items[2],), "Labelled a, seems b.", relabel="b", shown=tuple(items[3:5])),
        Finding("unreadable", 1.0, (missing,), "This file cannot be read.", drop=(missing,)),
    ]
    (folder / "audit.html").write_text(review_page(findings, "set", "7 images.", ["a note"], "abc"))
    return (folder / "audit.html").as_uri()


def test_decisions_by_keys_and_buttons_are_saved_and_loaded(browser: Any, address: str, tmp_path: Path) -> None:
    page = browser.new_page()
    troubles: list[str] = []
    page.on("pageerror", lambda error: troubles.append(str(error)))
    page.on("console", lambda message: troubles.append(message.text))
    page.goto(address)
    for key in ("j", "a", "r", "k", "u"):  # accepts the first, rejects the second, and takes that back
        page.keyboard.press(key)
    page.keyboard.press("k")
    assert page.inner_text("#count") in ("1 accepted, 0 rejected, 2 open", "0 accepted, 1 rejected, 2 open")
    page.get_by_role("button", name="Relabel as b").click()
    page.locator("article").nth(2).get_by_role("button", name="Reject").click()
    with page.expect_download() as download:
        page.get_by_role("button", name="Save decisions").click()
    download.value.save_as(tmp_path / "decisions.json")
    saved = json.loads((tmp_path / "decisions.json").read_text())
    assert 1 in saved["accepted"]
    assert 2 in saved["rejected"]

    page.evaluate("() => localStorage.clear()")
    page.reload()
    assert page.inner_text("#count") == "0 accepted, 0 rejected, 3 open"
    page.set_input_files("#load", tmp_path / "decisions.json")
    page.wait_for_function(
        "() => document.getElementById('count').textContent.endsWith('open') && "
        "!document.getElementById('count').textContent.startsWith('0 accepted, 0')"
    )
    page.select_option("#open", "accepted")
    shown = page.locator("article:visible").evaluate_all("cards => cards.map(card => Number(card.dataset.number))")
    assert shown == saved["accepted"]
    assert troubles == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 768, 360])
def test_nothing_keeps_people_out(width: int, scheme: str, browser: Any, axe: str, address: str) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme, bypass_csp=True)
    page = context.new_page()
    page.goto(address)
    page.get_by_role("button", name="Leave out 1 of 2").click()
    assert barriers(page, axe) == []
    assert not overflows(page)
    page.select_option("#open", "open")
    assert barriers(page, axe) == []
    context.close()
