"""Files that are not text themselves, read as text."""

import sys
from datetime import date
from pathlib import Path

import pytest

from shared_context.errors import UnreadableError
from shared_context.store.files import read_text
from shared_context.store.loading import load_documents

SENTENCE = "The gate opens at six in the morning."

PAGE = f"""<!doctype html><html><head><title>Gate</title><script>let x = "no text";</script></head><body>
<nav><a href="/">Home</a> <a href="/about">About us</a></nav>
<main><h1>The gate</h1><p>{SENTENCE}</p>
<table><tr><th>Day</th><th>Hour</th></tr><tr><td>Monday</td><td>6</td></tr></table>
</main><footer>All rights reserved.</footer></body></html>"""


@pytest.mark.parametrize("kind", [".pdf", ".docx", ".pptx", ".xlsx"])
def test_office_files_are_read(tmp_path, make_file, kind):
    (document,) = load_documents(make_file(tmp_path / f"gate{kind}", SENTENCE), max_bytes=10**6)
    assert SENTENCE in document.text
    assert document.metadata["file_name"] == f"gate{kind}"


def test_cells_of_a_workbook_are_read_as_they_stand_there(tmp_path):
    from openpyxl import Workbook

    workbook = Workbook()
    workbook.active.title = "Rota"
    for row in ["Shift", "Begins"], ["Early", 6], [None, None], ["Late", None, None], [date(2026, 3, 1), "a|b\nc"]:
        workbook.active.append(row)
    workbook.create_sheet("Empty")
    workbook.create_sheet("Wardens").append(["Ada"])
    workbook.save(tmp_path / "rota.xlsx")
    assert read_text(tmp_path / "rota.xlsx", 10**6, "rota").splitlines() == [
        "## Rota",
        "",
        "| Shift | Begins |",
        "| --- | --- |",
        "| Early | 6 |",
        "| Late |  |",
        "| 2026-03-01 00:00:00 | a\\|b c |",
        "",
        "## Wardens",
        "",
        "| Ada |",
        "| --- |",
    ]


def test_a_pdf_is_known_by_its_content(tmp_path, make_file):
    made = make_file(tmp_path / "gate.pdf", SENTENCE)
    assert SENTENCE in read_text(made.rename(tmp_path / "gate"), 10**6, "gate")


@pytest.mark.parametrize(
    "encoding, declared",
    [
        ("utf-8", ""),
        ("latin-1", ""),
        ("utf-16", ""),
        ("koi8-r", '<meta charset="koi8-r">'),
        ("latin-1", "<meta charset=x>"),
    ],
)
def test_of_a_page_the_main_text_is_read(tmp_path, encoding, declared):
    page = tmp_path / "gate.html"
    word = "утром" if encoding == "koi8-r" else "früh"
    page.write_text(PAGE.replace("morning", word).replace("<head>", f"<head>{declared}"), encoding=encoding)
    text = read_text(page, 10**6, "page")
    assert SENTENCE.replace("morning", word) in text and "Monday" in text and "# The gate" in text
    assert not any(word in text for word in ("About", "rights", "no text"))


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("<h2>Hours</h2><p>Closed on Monday.</p>", "## Hours\n\nClosed on Monday."),
        ("<!doctype html><title>The house</title><h1>Hours</h1><p>Closed on Monday.", "# Hours\n\nClosed on Monday."),
        ("<p>Closed on Monday.</p>", "Closed on Monday."),
        ("<table><tr><th>Day</th></tr><tr><td>Monday</td></tr></table>", "| Day |\n|---|\n| Monday |"),
    ],
)
def test_a_part_of_a_page_is_a_page(tmp_path, page, text):
    (tmp_path / "part.htm").write_text(page)
    lines = read_text(tmp_path / "part.htm", 10**6, "page").splitlines()
    assert [line.rstrip() for line in lines] == text.split("\n")  # releases end a row with a blank or without


@pytest.mark.parametrize("name", ["app.py", "rows.csv", "values.json", "LICENSE", "main.rs"])
def test_what_is_text_itself_is_read_as_it_is(tmp_path, name):
    content = '{"gate": 6}\r\n\ta, b\n'
    (tmp_path / name).write_bytes(content.encode())
    assert load_documents(tmp_path, max_bytes=1000)[0].text == content


@pytest.mark.parametrize("kind", [".pdf", ".docx", ".pptx", ".xlsx", ".epub", ".ipynb"])
def test_a_damaged_file_is_not_read_as_if_it_were_text(tmp_path, kind):
    damaged = tmp_path / f"gate{kind}"
    damaged.write_bytes(b"PK\x03\x04 this is no archive and no document")
    with pytest.raises(UnreadableError, match="damaged or protected"):
        read_text(damaged, 10**6, "file 'gate'")


@pytest.mark.parametrize("kind", [".pdf", ".docx"])
def test_a_file_without_text_is_said_to_be_one(tmp_path, make_file, kind):
    with pytest.raises(UnreadableError, match="scan"):
        read_text(make_file(tmp_path / f"scan{kind}", ""), 10**6, "file 'scan'")
    (tmp_path / "menu.html").write_text("<html><body><script>1</script></body></html>")
    with pytest.raises(UnreadableError, match="page without text"):
        read_text(tmp_path / "menu.html", 10**6, "file 'menu.html'")


@pytest.mark.parametrize("name, library", [("a.pdf", "markitdown"), ("a.xlsx", "openpyxl"), ("a.html", "trafilatura")])
def test_what_is_missing_for_a_kind_is_named(tmp_path, make_file, monkeypatch, name, library):
    made = make_file(tmp_path / name, SENTENCE)
    monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(UnreadableError, match=rf"{library}.*sharedllm\[files\]"):
        read_text(made, 10**6, name)


def test_binary_files_of_a_folder_are_passed_over(tmp_path, caplog):
    for name, content in {
        "note.md": b"text",
        "photo": b"\xff\xd8\xff\xe0",
        "plan.svg": b"<svg/>",
        "app.bin": b"ab\0c",
        "all.zip": b"PK\x03\x04",
    }.items():
        (tmp_path / name).write_bytes(content)
    assert [Path(document.id).name for document in load_documents(tmp_path, max_bytes=1000)] == ["note.md"]
    for name, reason in {"photo": "JPEG", "plan.svg": "SVG", "app.bin": "binary", "all.zip": "ZIP"}.items():
        assert any(name in line and reason in line for line in caplog.text.splitlines())
