"""What is generated from the notebooks: `python .ci/pages.py` writes it anew (make pages), a test compares.

- the index in notebooks/README.md, between its two markers, from every notebook's own first cell
- notebooks/thumbnails/NN.png, from every notebook's first figure; of several panels the first, so that it can be read
- notebooks/pictures/*.svg, the diagrams, by .ci/pictures.py from the embedded pair
- notebooks/gallery.md, by `cdlearn compare` on notebooks/prompts.jsonl
- notebooks/architectures.md, by trying every family of tests/architectures.py
- the tables of notebooks/speed.md and notebooks/thumbnails/bench.png, from .ci/bench (make bench)
- the setup cell of every notebook, which installs cdlearn where it is missing, or says how to; its way to the others

`make pages REPO_URL=https://github.com/OWNER/NAME`, once the address is owned, writes it into pyproject.toml first:
then setup cells install from there, and the index links to Colab and Binder.
"""

import base64
import contextlib
import io
import json
import re
import sys
import tomllib
from itertools import zip_longest
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image, ImageChops

FOLDER = Path(__file__).parent.parent / "notebooks"
PROJECT = tomllib.loads((FOLDER.parent / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# where this lies, once somebody owns the address: code on readers' machines must not come from a name that is free
HOME = PROJECT.get("urls", {}).get("Repository", "")
BENCH = Path(__file__).parent / "bench"
FAST, SLOW = "<!-- performance: make bench -->", "<!-- end of performance -->"
START, END = "<!-- index: make pages -->", "<!-- end of index -->"
WIDTH, SHOWN = 800, 400  # pixels of a thumbnail at most, and how wide the index shows it
GALLERY = ["compare", "--prompts-file", "notebooks/prompts.jsonl", "--format", "markdown", "--max-new-tokens", "64"]
GALLERY += ["--methods", "amateur", "greedy", "sample top_p=0.95", "contrastive"]
SETUP = """\
# an installed cdlearn, and its torch, are left alone
import importlib.util

if importlib.util.find_spec("cdlearn") is None:
    """


SETUP_FACTS = {"jupyter": {"source_hidden": True}, "tags": ["setup"]}


def setup(home: str) -> str:
    """The first code cell: installs the package where it is missing, or says how to."""
    words = "install cdlearn first: %pip install PATH, a clone of its repository or its wheel"
    stop = f'raise ModuleNotFoundError("{words}")'
    return SETUP + (f"%pip install --quiet git+{home}" if home else stop)


def notebooks() -> list[Path]:
    return sorted(FOLDER.glob("*.ipynb"))


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def about(notebook: dict) -> dict[str, str]:
    """Title, goals, minutes and prerequisite of a notebook, from its first cell."""
    text = "".join(notebook["cells"][0]["source"])
    goals = re.findall(r"^- (.*)$", text, re.M)
    before = re.search(r"Before this: \[([^\]]*)\]\(([^)]*)\)", text)
    return {
        "title": re.search(r"^# (.*)$", text, re.M).group(1),
        "goal": goals[0],
        "minutes": re.search(r"(\d+) minutes", text).group(1),
        "before": f"[{before.group(1)[:2]}]({before.group(2)})" if before else "",
    }


def figure(notebook: dict) -> tuple[bytes, str] | tuple[None, str]:
    """The first figure that a notebook drew, as PNG, and its alternative text; a strip of one line is too flat."""
    for cell in notebook["cells"]:
        for output in cell.get("outputs", []):
            if "image/png" in output.get("data", {}):
                data = base64.b64decode("".join(output["data"]["image/png"]))
                wide, high = Image.open(io.BytesIO(data)).size
                if wide < 4 * high:
                    return data, cell["metadata"].get("alt", "")
    return None, ""


def thumbnail(data: bytes) -> tuple[Image.Image, bool]:
    """A figure without its margins, and of a wide one only the panels of the left half; was it cut?"""
    picture = Image.open(io.BytesIO(data)).convert("RGB")
    picture = picture.crop(ImageChops.invert(picture).getbbox())
    ink = ImageChops.invert(picture.convert("L"))
    wide, high = picture.size
    gaps = [x for x in range(3 * wide // 10, 6 * wide // 10) if not ink.crop((x, 0, x + 5, high)).getbbox()]
    if is_cut := bool(gaps) and wide > 2 * high:
        picture = picture.crop((0, 0, gaps[0] + 5, high))
    picture.thumbnail((WIDTH, WIDTH))
    return picture, is_cut


def alt(notebook: dict) -> str:
    """The alternative text of the first figure, its first sentence."""
    data, text = figure(notebook)
    part = " (the left part is shown)" if data and thumbnail(data)[1] else ""
    return re.split(r"(?<=[.;:])\s", text)[0].rstrip(".;:").replace('"', "'") + part


def index(home: str = HOME) -> str:
    """The course as cards, two in a row; with an address, each opens its notebook on Colab and Binder.

    A picture has its text in its own cell: beside a column of text a table would squeeze it to a stamp.
    """
    repository, cards = home.removeprefix("https://github.com/"), []
    for path in notebooks():
        notebook = read(path)
        facts = about(notebook)
        after = f", after {facts['before']}" * bool(facts["before"])
        card = f"**[{facts['title']}]({path.name})**<br>{facts['minutes']} minutes{after}<br>{facts['goal']}"
        if figure(notebook)[0]:
            card += f'<br><img src="thumbnails/{path.name[:2]}.png" width="{SHOWN}" alt="{alt(notebook)}">'
        colab = f"https://colab.research.google.com/github/{repository}/blob/main/notebooks/{path.name}"
        binder = f"https://mybinder.org/v2/gh/{repository}/main?labpath=notebooks/{path.name}"
        cards.append(card + f"<br>[Colab]({colab}) [Binder]({binder})" * bool(home))
    lines = ["| read from left to right | with the first figure of each |", "| --- | --- |"]
    lines += [f"| {left} | {right} |" for left, right in zip_longest(cards[::2], cards[1::2], fillvalue="")]
    words = "On Colab the first code cell installs `cdlearn`; Binder builds `environment.yml`, which takes minutes."
    return "\n".join([*lines, *(["", words] if home else [])])


def with_index(page: str) -> str:
    head, rest = page.split(START)
    return f"{head}{START}\n{index()}\n{END}{rest.split(END)[1]}"


def gallery() -> str:
    """The gallery page, as the command prints it."""
    from cdlearn.cli.main import main

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.chdir(FOLDER.parent):
        code = main(GALLERY)
    assert code in (0, None), code
    command = " ".join(f'"{word}"' if " " in word else word for word in GALLERY)
    return (
        "# Gallery\n\n"
        "Seven prompts, four ways to continue them, and nothing chosen after the fact: each cell is the first text "
        "that the method gave (sampling: seed 0). The embedded pair was trained on its toy world alone, and the first "
        "five prompts are its own ground. It has never seen a haiku or a docstring, and its expert says so in its way. "
        "For those, run the same command on a pair from the hub, with `--expert` and `--amateur`.\n\n"
        f"Made by `make pages`, which runs `cdlearn {command}`.\n\n{printed.getvalue()}"
    )


def architectures() -> str:
    """The page of what works with which family of models, as the tests find it."""
    sys.path.insert(0, str(FOLDER.parent / "tests"))
    from architectures import page

    return page()


def navigation(path: Path) -> str:
    """The line at the top and the end of a notebook: the one before, where you are, the one after."""
    paths = notebooks()
    at = paths.index(path)

    def title(k: int) -> str:
        return about(read(paths[k]))["title"]

    before = f"[← {title(at - 1)}]({paths[at - 1].name}) · " if at else ""
    after = f" · [{title(at + 1)} →]({paths[at + 1].name})" if at + 1 < len(paths) else ""
    return f"*{before}notebook {at:02} of {len(paths) - 1:02} · [the course](README.md){after}*"


def with_navigation(notebook: dict, line: str) -> dict:
    """The notebook with this line under its title and as its last words."""
    first, *between, last = notebook["cells"]
    head, last_words = ("".join(cell["source"]) for cell in (first, last))
    old = r"\n\n\*.*notebook \d\d of \d\d.*\*"
    title, rest = re.sub(old, "", head).split("\n\n", 1)
    first = first | {"source": f"{title}\n\n{line}\n\n{rest}".splitlines(keepends=True)}
    last = last | {"source": f"{re.sub(old, '', last_words)}\n\n{line}".splitlines(keepends=True)}
    return notebook | {"cells": [first, *between, last]}


def with_setup(notebook: dict) -> dict:
    """The notebook with the current setup cell, folded, after its first cell, and its cells numbered again."""
    cells = [c for c in notebook["cells"] if "setup" not in c["metadata"].get("tags", [])]
    first = {"cell_type": "code", "execution_count": 1, "id": "setup", "metadata": SETUP_FACTS, "outputs": []}
    cells.insert(1, first | {"source": setup(HOME).splitlines(keepends=True)})
    count = 0
    for cell in cells:
        if cell["cell_type"] == "code" and "".join(cell["source"]).strip():
            count += 1
            cell["execution_count"] = count
            for output in cell["outputs"]:
                if "execution_count" in output:
                    output["execution_count"] = count
    return notebook | {"cells": cells}


def furnished(path: Path) -> dict:
    """A notebook with what every notebook has: its way to the others, and its setup cell."""
    return with_setup(with_navigation(read(path), navigation(path)))


STEPS = {
    "contrastive": "contrastive step / both bare forwards",
    "contrastive, no trace": "the same without a trace",
    "as_causal_lm": "`as_causal_lm(...).generate` / both bare forwards",
    "DoLa": "DoLa / the plain loop",
    "mix": "a mix of both / both bare forwards",
    "prompted": "a prompted source / its bare forward",
    "early exit at half": "early exit at half the layers / the whole expert",
    "transformers generate": "transformers' own `generate` / its bare forward",
}
TEXTS = {
    "speculative contrastive": "speculative contrastive over contrastive, the same tokens",
    "speculative": "speculative over greedy, the same tokens",
    "self-speculative": "self-speculative, exit {exit}, over greedy, the same tokens",
    "transformers assisted": "transformers' assisted generation over greedy",
}


def measured(name: str) -> tuple[dict, dict]:
    """What `make bench` left: the facts, and the rows by method, batch and context (early exits under one name)."""
    record = json.loads((BENCH / f"{name}.json").read_text(encoding="utf-8"))
    rows = {}
    for row in record["rows"]:
        method = re.sub(r"exit at \d+$", "exit at half", row["method"])
        rows[re.sub(r", exit \d+$", "", method), row.get("batch", 1), row.get("context")] = row
    return record, rows


def spread(row: dict, digits: int = 2) -> str:
    return f"{row['ratio']:.{digits}f} ({row['low']:.{digits}f}-{row['high']:.{digits}f})"


def performance() -> str:
    """The tables of speed: steps, texts, and how the ratios move with batch and context."""
    (facts, small), (more, large), (swept, grid) = measured("embedded"), measured("100m"), measured("sweep")
    place = facts["machine"]
    lines = [
        f"One thread (embedded: {place['device']}; random: {more['machine']['device']}), torch {place['torch']}, "
        f"transformers {place['transformers']}, "
        "fp32, batch 1: median and range over repetitions.",
        "",
        "| a step | embedded, 1.2M / 0.04M | random, 98M / 20M | aim |",
        "|---|---|---|---|",
    ]
    for method, label in STEPS.items():
        here, there = small[method, 1, None], large[method, 1, None]
        lines.append(f"| {label} | {spread(here, 3)} | {spread(there, 3)} | {here['aim']} |")
    lines += [
        "",
        "| a story of the embedded pair, gamma 'auto' | times as fast | predicted | share accepted |",
        "|---|---|---|---|",
    ]
    for method, label in TEXTS.items():
        row = small[method, 1, None]
        exit_layer = row["method"].rsplit(" ", 1)[-1]
        guess = f"{row['predicted']:.2f} | {row['accepted']:.2f}" if row.get("predicted") else " | "
        lines.append(f"| {label.format(exit=exit_layer)} | {spread(row)} | {guess} |")
    contexts = sorted({context for _, _, context in grid})
    sizes = f"{swept['setting']['expert']} / {swept['setting']['amateur']}"
    heads = [f"random, {sizes}: contrastive step, DoLa", *(f"context {c}" for c in contexts)]
    lines += ["", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for batch in sorted({batch for _, batch, _ in grid}):
        cells = [f"batch {batch}"]
        for place in [(batch, context) for context in contexts]:
            pair = [grid[method, *place]["ratio"] for method in ("contrastive", "DoLa") if (method, *place) in grid]
            cells.append(", ".join(f"{ratio:.2f}" for ratio in pair) or "not measured")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_performance(page: str) -> str:
    head, rest = page.split(FAST)
    return f"{head}{FAST}\n{performance()}\n{SLOW}{rest.split(SLOW)[1]}"


def sweep_figure() -> Figure:
    """The figure of speed: the ratios of the sweep over the context, a panel for each batch."""
    from sweep import plot_sweep  # beside this script

    return plot_sweep(measured("sweep")[0]["rows"])


def written(notebook: dict) -> str:
    return json.dumps(notebook, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    (FOLDER / "thumbnails").mkdir(exist_ok=True)
    for path in notebooks():
        path.write_text(written(furnished(path)), encoding="utf-8")
        if data := figure(read(path))[0]:
            picture, _ = thumbnail(data)
            picture.quantize(32).save(FOLDER / "thumbnails" / f"{path.name[:2]}.png", optimize=True)
    from pictures import drawn  # beside this script

    (FOLDER / "pictures").mkdir(exist_ok=True)
    for name, picture in drawn().items():
        (FOLDER / "pictures" / name).write_text(picture, encoding="utf-8")
    sweep_figure().savefig(FOLDER / "thumbnails" / "bench.png", dpi=100, metadata={"Software": None})
    speed = FOLDER / "speed.md"
    speed.write_text(with_performance(speed.read_text(encoding="utf-8")), encoding="utf-8")
    page = FOLDER / "README.md"
    page.write_text(with_index(page.read_text(encoding="utf-8")), encoding="utf-8")
    (FOLDER / "gallery.md").write_text(gallery(), encoding="utf-8")
    (FOLDER / "architectures.md").write_text(architectures(), encoding="utf-8")


if __name__ == "__main__":
    main()
