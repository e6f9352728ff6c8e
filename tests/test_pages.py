"""The generated pages agree with the notebooks: what `make pages` writes is what is committed."""

import importlib.util
import json
import re
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def loaded(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / ".ci" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


pages, real, pictures = loaded("pages"), loaded("real"), loaded("pictures")


def test_the_index_is_current():
    page = (ROOT / "notebooks" / "README.md").read_text(encoding="utf-8")
    assert pages.with_index(page) == page, "run `make pages`"
    assert all(f"]({path.name})" in pages.index() for path in pages.notebooks())


def test_the_page_of_the_real_pair_and_its_sums_are_current():
    assert real.page() == real.PAGE.read_text(encoding="utf-8"), "run `make pages`"
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    assert real.with_table(readme) == readme, "run `make pages`"
    assert real.sums() == (real.FOLDER / "sums.jsonl").read_text(encoding="utf-8")


def test_the_diagrams_are_current():
    """Every number and word in them is computed again; lengths follow from the printed numbers."""
    folder = ROOT / "notebooks" / "pictures"
    now = pictures.drawn()
    assert {path.name for path in folder.iterdir()} == set(now), "run `make pages`"
    for name, picture in now.items():
        assert picture == (folder / name).read_text(encoding="utf-8"), f"{name}: run `make pages`"


def test_the_diagrams_can_be_read_and_heard():
    """One viewBox of 680 units, letters of 21 and more (11 pixels on a phone), a title and a story, dark colours."""
    for path in sorted((ROOT / "notebooks" / "pictures").iterdir()):
        picture = path.read_text(encoding="utf-8")
        ElementTree.fromstring(picture)
        assert 'viewBox="0 0 680 ' in picture and 'role="img"' in picture and "prefers-color-scheme: dark" in picture
        assert re.search(r"<title[^>]*>.+</title>", picture) and re.search(r"<desc[^>]*>.{40,}</desc>", picture)
        assert all(int(size) >= 21 for size in re.findall(r'font-size="(\d+)"', picture))


def test_a_text_that_does_not_fit_is_refused():
    with pytest.raises(AssertionError, match="longer than 100"):
        pictures.text(0, 0, "far too long for its room", room=100)


def test_the_gallery_is_current():
    assert pages.gallery() == (ROOT / "notebooks" / "gallery.md").read_text(encoding="utf-8"), "run `make pages`"


@pytest.mark.parametrize("path", pages.notebooks(), ids=lambda path: path.stem)
def test_every_notebook_has_its_setup_cell_navigation_and_thumbnail(path):
    notebook = pages.read(path)
    assert pages.written(pages.furnished(path)) == path.read_text(encoding="utf-8"), "run `make pages`"
    if data := pages.figure(notebook)[0]:
        picture = Image.open(ROOT / "notebooks" / "thumbnails" / f"{path.name[:2]}.png")
        assert picture.size == pages.thumbnail(data)[0].size and picture.width <= pages.WIDTH


def test_the_setup_cell_acts_only_where_cdlearn_is_missing(monkeypatch):
    """The cell is IPython; its one magic line becomes a call that is counted. Without an address it says what to do."""
    calls, names = [], {"pip_install": lambda: calls.append("install")}
    program = pages.setup("https://github.com/OWNER/NAME").replace("%pip install", "pip_install() #")
    for cell in (program, pages.setup("")):
        exec(cell, names)  # cdlearn is here
    assert calls == []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    exec(program, names)
    assert calls == ["install"] and "--quiet git+https://github.com/OWNER/NAME" in program
    with pytest.raises(ModuleNotFoundError, match="install cdlearn first: %pip install PATH"):
        exec(pages.setup(""), names)


def test_the_index_links_to_hosts_only_where_there_is_an_address():
    assert "colab" not in pages.index("") and "mybinder" not in pages.index("")
    with_address = pages.index("https://github.com/OWNER/NAME")
    assert "colab.research.google.com/github/OWNER/NAME/blob/main/notebooks/00_start_here.ipynb" in with_address
    assert with_address.count("mybinder.org") == len(pages.notebooks())


def test_no_address_is_named_that_is_not_owned():
    """Code on readers' machines must not come from a name that anybody may register."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    files = [ROOT / "README.md", *sorted((ROOT / "notebooks").rglob("*.md")), *pages.notebooks()]
    if "urls" not in project:
        assert not [
            file.name for file in files if re.search(r"github\.com/cdlearn|git\+https", file.read_text("utf-8"))
        ]


def test_setup_cells_number_the_cells_after_them():
    code = {"cell_type": "code", "execution_count": 7, "metadata": {}, "source": ["1"], "id": "a"}
    result = {"output_type": "execute_result", "execution_count": 7, "data": {}, "metadata": {}}
    text = {"cell_type": "markdown", "metadata": {}, "source": ["# 05 · x"], "id": "b"}
    once = pages.with_setup({"cells": [text, code | {"outputs": [result]}]})
    assert [cell.get("execution_count") for cell in once["cells"]] == [None, 1, 2]
    assert once["cells"][2]["outputs"][0]["execution_count"] == 2
    assert json.loads(pages.written(pages.with_setup(once))) == once
