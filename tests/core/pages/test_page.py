"""Pages: every kind of block, text that is never markup, and nothing that is loaded."""

from __future__ import annotations

import re

import pytest
from markupsafe import Markup

from evenfield.core.files import FileError
from evenfield.core.pages.page import (
    Bullets,
    Document,
    Figures,
    Picture,
    Progress,
    Section,
    Table,
    Text,
    write_page,
)


BLOCKS = [
    Progress(0.256),
    Figures([("step", "3 of <10>")]),
    Text("plain"),
    Text("careful", style="warning"),
    Bullets(["one", "two <b>"]),
    Table("numbers", ["name", "value"], [["a <i>", "1"]]),
    Table("hidden", ["name"], [["b"]], folded=True),
    Table("words", ["name"], [["c"]], words=True),
    Picture("what it shows", b"png", caption="pictures/x.png"),
    Document("a document", Markup("<em>safe</em>")),
]


def test_page_shows_every_kind_of_block(tmp_path):
    path = tmp_path / "new" / "page.html"
    assert write_page(path, "A <title>", [Section("First", BLOCKS)], state="training") == path
    html = path.read_text()
    assert "<h1>A &lt;title&gt;<span>training</span></h1>" in html
    assert "<title>A &lt;title&gt;</title>" in html
    assert 'aria-valuenow="25.6"' in html and "width: 25.6%" in html
    assert "<dd>3 of &lt;10&gt;</dd>" in html
    assert '<p class="warning">careful</p>' in html and "<p>plain</p>" in html
    assert "<li>two &lt;b&gt;</li>" in html
    assert '<th scope="row">a &lt;i&gt;</th><td>1</td>' in html
    assert html.count("<details>") == 2 and html.count('class="words"') == 1
    assert 'src="data:image/png;base64,cG5n"' in html
    assert "<em>safe</em>" in html


def test_page_loads_nothing_and_lists_its_sections(tmp_path):
    sections = [Section("", [Text("head")]), *(Section(f"Part {k}") for k in "abc")]
    html = write_page(tmp_path / "page.html", "t", sections).read_text()
    assert re.findall(r'href="([^"]*)"', html) == ["#part-a", "#part-b", "#part-c"]
    assert 'id="part-b"' in html
    assert "http" not in html and "url(" not in html
    few = write_page(tmp_path / "page.html", "t", sections[:3]).read_text()
    assert "<nav>" not in few


def test_page_of_something_unfinished_is_read_again(tmp_path):
    html = write_page(
        tmp_path / "p.html", "t", [], reload_seconds=7.0, browser_title="x"
    ).read_text()
    assert '<meta http-equiv="refresh" content="7">' in html and "<title>x</title>" in html


def test_page_that_cannot_be_written_is_an_error_for_users(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(FileError):
        write_page(tmp_path / "file" / "page.html", "t", [])
