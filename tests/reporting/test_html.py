"""Pieces of a page in a real browser, as wide as a phone."""

import numpy as np
import pytest
from webdriver import Browser

from smke_jax.reporting.classes import Confusion, confusion_section
from smke_jax.reporting.html import page, table

FIELD = "networks.student.image.patch_embedding_of_the_first_layer"


@pytest.fixture(scope="module")
def browser():
    with Browser(width=500, height=700) as browser:
        yield browser


def test_tables_are_read_column_by_column(browser, tmp_path):
    counts = table(("split", "images"), [("train", "1,000,000")])
    fields = table(("field", "value", "default"), [("depth", "12", "6"), (FIELD, "a" * 8, "b" * 8)], said=True)
    (tmp_path / "page.html").write_text(page("x", f'<main style="width: 360px">{counts}{fields}</main>'))
    browser.open((tmp_path / "page.html").as_uri())
    head, cell = browser.run(
        "return ['th', 'td'].map(tag => { const range = document.createRange();"
        "range.selectNodeContents(document.querySelectorAll(tag)[1]); return range.getBoundingClientRect().right })"
    )
    assert abs(head - cell) < 1, "a number does not stand below its title"
    names = browser.run("return [...document.querySelectorAll('.said tbody tr')].map(row => row.cells[0].innerText)")
    assert names == ["depth", FIELD]  # as they are copied
    one, several, width, room = browser.run(
        "const rows = [...document.querySelectorAll('.said tbody tr')], table = document.querySelector('.said');"
        "return [...rows.map(row => row.cells[0].getBoundingClientRect().height), table.scrollWidth,"
        "table.parentElement.clientWidth]"
    )
    assert several > 1.5 * one and width <= room


def test_a_number_stays_in_one_line(browser, tmp_path):
    numbers = ("1,000,000", "0.123456789", "-12.5e-06", "43.8 %", "0.35, 1.0")
    narrow = "<style>table.said { width: 1px; }</style>"  # as wide as what cannot be broken
    tables = "".join(table(("", ""), [("x", text)], said=True) for text in numbers)
    (tmp_path / "page.html").write_text(page("x", narrow + tables))
    browser.open((tmp_path / "page.html").as_uri())
    lines = browser.run(
        "return [...document.querySelectorAll('td:last-child')].map(cell => { const range = document.createRange();"
        "range.selectNodeContents(cell); return new Set([...range.getClientRects()].map(x => x.top)).size })"
    )
    assert lines == [1, 1, 1, 1, 2], "the last are two numbers"


def test_a_matrix_of_five_classes_fits_a_phone_and_of_more_keeps_its_row_names(browser, tmp_path):
    names = ["daisy", "dandelion", "roses", "sunflowers", "tulips"]
    five = confusion_section("a", 1, Confusion(names, np.full((5, 5), 12)))
    long = [f"{name} {number}" for number in range(4) for name in names[:-1]] + ["x" * 300]
    many = confusion_section("a", 1, Confusion(long, np.full((17, 17), 12)))
    (tmp_path / "page.html").write_text(page("x", f'<div style="width: 358px">{five}{many}</div>'))
    browser.open((tmp_path / "page.html").as_uri())
    (width, room), (more, _) = browser.run(
        "return [...document.querySelectorAll('.scroll')].map(x => { x.scrollLeft = 200;"
        "return [x.scrollWidth, x.clientWidth] })"
    )
    assert width <= room < more
    name, box, tall = browser.run(
        "const box = document.querySelectorAll('.scroll')[1], rect = x => x.getBoundingClientRect();"
        "return [rect(box.querySelector('tbody th')).left, rect(box).left, rect(box.querySelector('thead')).height]"
    )
    assert abs(name - box) < 1 and tall < 260, "a long name is cut"
