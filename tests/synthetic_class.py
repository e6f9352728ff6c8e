"""The numbers of the instructor's guide: `python tests/synthetic_class.py [FOLDER]` grades a class and measures it.

Thirty submissions of the first assignment: references, every kind of planted mistake, untouched ones, and five that are
hostile. One run of `cdlearn grade` takes them all; its seconds, and the most memory that it and its children held.
"""

import subprocess
import sys
import tempfile
import time
from itertools import cycle, islice
from pathlib import Path

import nbformat
import psutil
from masters import HOSTILE, MASTERS, handed_in, planted, reference

from cdlearn.classroom.grader import build

SIZE, REFERENCES, BLANK = 30, 8, 2


def write_class(folder: Path) -> None:
    """Fill the folder with STUDENT/ASSIGNMENT.ipynb."""
    name = MASTERS[0].stem
    right = reference(name)
    mistakes = [(grade_id, source) for assignment, grade_id, _, source in planted() if assignment == name]
    work = [right] * REFERENCES + [{}] * BLANK
    work += [right | {"loop": source} for source in HOSTILE.values()]
    work += [right | {grade_id: source} for grade_id, source in islice(cycle(mistakes), SIZE - len(work))]
    with tempfile.TemporaryDirectory() as release:
        build(release, names=[name])
        for number, solutions in enumerate(work):
            path = folder / f"student{number:02}" / f"{name}.ipynb"
            path.parent.mkdir(parents=True)
            nbformat.write(handed_in(Path(release) / name / f"{name}.ipynb", solutions), path)


def memory_of(process: psutil.Process) -> int:
    """Bytes that a process and its descendants hold."""
    held = 0
    for one in [process, *process.children(recursive=True)]:
        try:
            held += one.memory_info().rss
        except psutil.Error:  # it ended meanwhile
            pass
    return held


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()) / "class"
    write_class(folder)
    start, most = time.perf_counter(), 0
    grading = subprocess.Popen([sys.executable, "-m", "cdlearn", "grade", str(folder)])
    while grading.poll() is None:
        most = max(most, memory_of(psutil.Process(grading.pid)))
        time.sleep(0.5)
    print(f"{SIZE} submissions, {len(HOSTILE)} hostile: {time.perf_counter() - start:.0f} s, {most / 2**30:.1f} GiB")


if __name__ == "__main__":
    main()
