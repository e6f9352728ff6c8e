"""`cdlearn assignments` and `cdlearn grade`: the classroom from a terminal."""

from __future__ import annotations

import sys
import time
from pathlib import Path

from cdlearn.classroom.grader.build import build
from cdlearn.classroom.grader.grade import check_notebook, grade
from cdlearn.classroom.grader.results import summary, told
from cdlearn.cli import options


def assignments(argv: list[str]) -> int:
    parser = options.Parser(
        prog="cdlearn assignments",
        description="Build what students get: a folder and a zip per assignment.",
        epilog="example: cdlearn assignments to_hand_out --assignment 01_loop_and_score",
    )
    parser.add_argument("out", nargs="?", default="build/assignments", help="where to (default: build/assignments)")
    parser.add_argument("--source", metavar="FOLDER", help="the masters (default: notebooks/assignments/source)")
    parser.add_argument("--assignment", metavar="NAME", action="append", help="only this one (may be repeated)")
    parser.add_argument("--install", metavar="SPEC", help="for pip on Colab: a URL or a wheel")
    args = parser.parse_args(argv)
    for path in build(args.out, source=args.source, names=args.assignment, install=args.install):
        print(f"{path}  and  {path.parent}.zip")
    return 0


def check(argv: list[str]) -> int:
    parser = options.Parser(
        prog="cdlearn check",
        description="Run your notebook of an assignment from top to bottom in a clean process, and then its checks:\n"
        "what the grader will see, but for its own numbers.",
        epilog="example: cdlearn check 01_loop_and_score.ipynb",
    )
    parser.add_argument("notebook", help="the file you will hand in")
    args = parser.parse_args(argv)
    right, parts = 0, check_notebook(Path(args.notebook))
    for title, found in parts:
        right += found["points_earned"]
        print(options.clean(f"{'✓' if found['points_earned'] else '✗'} {title}: {found['status']}"))
        for label, text in told(found):
            print(options.clean(f"    {label + ':':17}{text}"))
    print(f"{right} of {len(parts)} parts hold in a clean run.")
    return 0 if right == len(parts) else 1


def grades(argv: list[str]) -> int:
    parser = options.Parser(
        prog="cdlearn grade",
        description="Grade a folder of submissions: STUDENT/ASSIGNMENT.ipynb, STUDENT/ASSIGNMENT/ASSIGNMENT.ipynb or\n"
        "STUDENT_ASSIGNMENT.ipynb. Writes grades.csv (a row per part), totals.csv (a row per student) and a feedback\n"
        "page per submission. Students' code runs in a sandbox where bubblewrap is installed; elsewhere a line says\n"
        "what is not protected.",
        epilog="example: cdlearn grade submissions --jobs 4 --out graded",
    )
    parser.add_argument("folder", help="the submissions")
    parser.add_argument("--assignment", metavar="NAME", help="only this one")
    parser.add_argument("--source", metavar="FOLDER", help="the masters (default: notebooks/assignments/source)")
    parser.add_argument("--seed", help="of the hidden tests (default: seed.txt of DIR, else a fresh secret)")
    parser.add_argument("--jobs", type=options.number(int, 1), help="submissions at once (default: one per core)")
    seconds = options.number(int, 1)
    parser.add_argument("--cell-timeout", type=seconds, default=60, metavar="S", help="seconds per cell (default: 60)")
    parser.add_argument("--timeout", type=seconds, default=600, metavar="S", help="seconds in all (default: 600)")
    gigabytes = options.number(float, 0)
    parser.add_argument("--memory", type=gigabytes, default=4.0, metavar="GB", help="address space (4); 0: no limit")
    parser.add_argument("--roster", metavar="FILE", help="a student per line: nobody is missing from grades.csv")
    parser.add_argument("--out", metavar="DIR", help="where to (default: FOLDER-graded); an earlier grading is updated")
    args = parser.parse_args(argv)
    folder = Path(args.folder)
    out = Path(args.out) if args.out else folder.resolve().parent / f"{folder.resolve().name}-graded"
    start, done, notes = time.perf_counter(), [], []

    def tell(text: str) -> None:
        done.append(text)
        print(options.clean(text), file=sys.stderr, flush=True)

    given = {name: value for name, value in vars(args).items() if name not in ("folder", "out")}
    try:
        rows = grade(folder, out, **given, tell=tell, note=notes.append)
        print(options.clean(summary(rows)))
    except KeyboardInterrupt:
        print(f"stopped: what is graded is in {out}; the same command grades all again, with the same seed.")
        return 130
    finally:
        print(options.clean("\n".join(notes)), end="\n" if notes else "")
    count = f"{len(done)} submission{'s' * (len(done) != 1)}"
    print(f"{count} in {time.perf_counter() - start:.0f} s: {out / 'grades.csv'}, {out / 'feedback'}")
    return 0
