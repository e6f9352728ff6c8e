"""From the masters to what students get: no solutions, no hidden tests, no outputs, one folder and one zip each."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import tempfile
from collections.abc import Sequence
from importlib.metadata import metadata
from pathlib import Path

from cdlearn.classroom.grader.submissions import Notebook, unlink

Folder = str | os.PathLike
SETUP = """import importlib.util

if importlib.util.find_spec("cdlearn") is None:
    {otherwise}
"""
STOP = 'raise ModuleNotFoundError("install cdlearn first, as your instructor says")'
_SECRET = re.compile(r"(BEGIN|END) +(SOLUTION|HIDDEN +TESTS)")


def find_masters(source: Folder | None = None) -> dict[str, Path]:
    """Return assignment name -> master notebook. They live in the repository, not in the installed package.

    source: the folder that holds `NAME/NAME.ipynb`; None: `notebooks/assignments/source` of the clone or of the
    working folder. Raises FileNotFoundError that says so.
    """
    inside = Path("notebooks", "assignments", "source")
    for folder in (Path(__file__).parents[3] / inside, inside) if source is None else (Path(source),):
        masters = {path.stem: path for path in sorted(folder.glob("*/*.ipynb")) if path.stem == path.parent.name}
        if masters:
            return masters
    raise FileNotFoundError(
        f"no masters {'here' if source is None else f'in {source}'}: they are in the repository ({inside.as_posix()}), "
        "not in the installed package. Run this in a clone, or give --source FOLDER."
    )


def pick(masters: dict[str, Path], names: Sequence[str] | None) -> dict[str, Path]:
    """The masters of these names, None for all; ValueError for a name that is none."""
    unknown = sorted(set(names or ()) - set(masters))
    if unknown:
        raise ValueError(f"no assignment {', '.join(unknown)}; there are {', '.join(masters)}.")
    return {name: path for name, path in masters.items() if not names or name in names}


def build(
    out: Folder, *, source: Folder | None = None, names: Sequence[str] | None = None, install: str | None = None
) -> list[Path]:
    """Write `out/NAME/NAME.ipynb` and `out/NAME.zip` for every assignment; returns the notebooks.

    names: only these. install: what pip installs where the package is missing, on Colab for instance (a URL, a wheel);
    None: the repository in the package's metadata, or a sentence. Raises RuntimeError without nbgrader, or where a part
    of a solution or a hidden test would have been left in.
    """
    masters = pick(find_masters(source), names)
    addresses = dict(line.split(", ", 1) for line in metadata("cdlearn").get_all("Project-URL") or ())
    setup = {"cell_type": "code", "id": "setup", "metadata": {}, "execution_count": None, "outputs": []}
    if not install and "Repository" in addresses:
        install = f"git+{addresses['Repository']}"
    setup["source"] = SETUP.format(otherwise=f'%pip install -q "{install}"' if install else STOP)
    out, written = Path(out), []
    with tempfile.TemporaryDirectory(prefix="cdlearn-build-") as course:
        for name, notebook in releases(masters, Path(course)).items():
            for number, cell in enumerate(notebook["cells"]):
                if _SECRET.search(cell["source"]):  # a marker that nbgrader did not know
                    raise RuntimeError(f"{name}: cell {number} of the release holds a solution or a hidden test.")
                cell["source"] = unlink(cell["source"]) if cell["cell_type"] == "markdown" else cell["source"]
            notebook["cells"].insert(1, setup)
            made = Path(course, "release", name)  # other files of the master's folder are there, too
            text = json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"
            (made / f"{name}.ipynb").write_text(text, encoding="utf-8")
            shutil.copytree(made, out / name, dirs_exist_ok=True)
            shutil.make_archive(str(out / name), "zip", made.parent, name)
            written.append(out / name / f"{name}.ipynb")
    return written


def releases(masters: dict[str, Path], course: Path) -> dict[str, Notebook]:
    """Run nbgrader's generate_assignment in a course folder (which keeps the gradebook); returns the notebooks."""
    api, made = course_api(course), {}
    for name, path in masters.items():
        shutil.copytree(path.parent, course / "source" / name, ignore=shutil.ignore_patterns(".*"))
        result = api.generate_assignment(name)
        if not result["success"]:
            reason = (result.get("error") or result.get("log") or "").strip().splitlines()
            raise RuntimeError(f"{path}: nbgrader cannot make the release: {' '.join(reason[-2:])}")
        made[name] = json.loads((course / "release" / name / f"{name}.ipynb").read_text(encoding="utf-8"))
        for cell in made[name]["cells"]:
            cell["source"] = "".join(cell["source"])
    return made


def course_api(course: Path):
    """nbgrader's API on one course folder with a gradebook of its own."""
    try:
        from nbgrader.apps import NbGraderAPI
        from traitlets.config import Config
    except ImportError as error:
        raise RuntimeError("this needs nbgrader: pip install -e '.[classroom]' in a clone") from error
    programs, path = os.path.dirname(sys.executable), os.environ.get("PATH", "")
    if path.split(os.pathsep)[0] != programs:
        os.environ["PATH"] = os.pathsep.join([programs, path])  # nbgrader calls `alembic` by name
    where = {"root": str(course), "db_url": f"sqlite:///{course / 'gradebook.db'}"}
    return NbGraderAPI(config=Config({"CourseDirectory": where}))
