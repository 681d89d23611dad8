"""Pieces of a page in a real browser, as wide as a phone."""

import pytest
from webdriver import Browser

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
