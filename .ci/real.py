"""The evidence of a real pair: `python .ci/real.py` writes notebooks/real.md and the README's table from .ci/real.

openings.jsonl and sums.jsonl there are the prompts (the sums are made here, seed 0); openings.json and sums.json the
rows of `cdlearn eval`; bench-*.json the tables of `cdlearn bench`.
"""

import json
import random
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / ".ci" / "real"
PAGE, README = ROOT / "notebooks" / "real.md", ROOT / "README.md"
START, END = "<!-- a real pair: make real -->", "<!-- end of a real pair -->"
TEMPLATES = [  # a text, and its answer from the numbers a, b, c
    (
        "A shop sells {a} apples at {b} coins each and {c} pears at 2 coins each. How many coins is that in all?",
        "a*b+2*c",
    ),
    ("Nora has {a} marbles. She wins {b} and then loses {c}. How many marbles has she now?", "a+b-c"),
    (
        "A bus starts with {a} people. At the first stop {c} leave and {b} get on. How many people are on the bus?",
        "a-c+b",
    ),
    ("There are {b} rows of {c} chairs, and {a} more chairs in a corner. How many chairs are there?", "b*c+a"),
    ("A book has {a} pages. Ali reads {c} pages on each of 3 days. How many pages are left?", "a-3*c"),
    ("A baker makes {b} trays of {c} rolls and sells {c} rolls. How many rolls are left?", "b*c-c"),
    ("Each of {b} children gets {c} stickers, and the teacher keeps {b}. How many stickers were there?", "b*c+b"),
    ("A rope of {a} metres is cut, and {b} pieces of 2 metres are taken. How many metres are left?", "a-2*b"),
    ("Mia saves {c} coins per week. After {b} weeks she spends {c} coins. How many coins does she have?", "b*c-c"),
    ("A garden has {a} red flowers and twice as many blue ones. {c} flowers fade. How many are left?", "3*a-c"),
]


def sums(n: int = 100) -> str:
    """Word problems of two steps as a prompts file, graded by the last number of the answer."""
    rng, lines = random.Random(0), []
    for k in range(n):
        text, formula = TEMPLATES[k % len(TEMPLATES)]
        numbers = {"a": rng.randint(40, 90), "b": rng.randint(3, 12), "c": rng.randint(3, 12)}
        answer = eval(formula, {}, numbers)  # of the table above
        prompt = f"{text.format(**numbers)} Think step by step, and end with the number."
        lines.append(json.dumps({"prompt": prompt, "answer": str(answer), "grade": "last number"}))
    return "\n".join(lines) + "\n"


def read(name: str) -> dict:
    return json.loads((FOLDER / name).read_text(encoding="utf-8"))


def number(row: dict, digits: int = 1) -> str:
    return f"{row['value']:.{digits}f} [{row['low']:.{digits}f}, {row['high']:.{digits}f}]"


def evaluation(name: str, metrics: list[str], methods: list[str] | None = None) -> list[str]:
    """A table of one line per method: each metric with its interval, and the difference of the first to greedy."""
    rows = read(name)["rows"]
    lines = [
        "| method | " + " | ".join(metrics) + f" | {metrics[0]}, minus greedy |",
        "|---|" + "---|" * (len(metrics) + 1),
    ]
    for method in methods or dict.fromkeys(row["strategy"] for row in rows):
        found = {row["metric"]: row for row in rows if row["strategy"] == method}
        less, cells = found[metrics[0]].get("minus_greedy"), [number(found[metric]) for metric in metrics]
        apart = f"{less['value']:+.1f} [{less['low']:+.1f}, {less['high']:+.1f}]" if less else ""
        lines.append("| " + " | ".join([method, *cells, apart]) + " |")
    return lines


def speeds() -> list[str]:
    """The rows of the benches side by side."""
    kinds = [kind for kind in ("bfloat16", "float32") if (FOLDER / f"bench-{kind}.json").exists()]
    rows = [{row["method"]: row for row in read(f"bench-{kind}.json")["rows"]} for kind in kinds]
    heads = ["", "against", *(head for kind in kinds for head in (f"{kind}: ms", "ratio")), "must be"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for name, row in rows[0].items():
        cells = [name, row["against"]]
        for found in (kind[name] for kind in rows):
            cells.append(f"{found['ms']:.0f}")
            cells.append(
                "" if found["ratio"] is None else f"{found['ratio']:.2f} ({found['low']:.2f}-{found['high']:.2f})"
            )
        lines.append("| " + " | ".join([*cells, row["aim"]]) + " |")
    return lines


def about(name: str) -> str:
    s = read(name)["setup"]
    minutes = f"{s['seconds'] / 60:.0f} minutes on {s['threads']} threads, " if s["seconds"] > 60 else ""  # resumed
    return f"{minutes}seed {s['seed']}, torch {s['torch']}"


def page() -> str:
    """What was measured so far: a section for every file that is there."""
    place = ", ".join(f"{key} {value}" for key, value in read("bench-bfloat16.json")["machine"].items())
    lines = [
        "# A real pair, measured", "",
        "Expert: Qwen2.5-Coder-1.5B-Instruct. Amateur: Qwen2.5-Coder-0.5B-Instruct. Both were read from files of 4-bit "
        "weights and turned back into bfloat16. `make real` makes all of it again: the texts, the tables, and the "
        "outputs of [notebook 13](13_a_real_pair.ipynb). In brackets: 95% bootstrap intervals over the prompts.", "",
        f"Machine: {place}.", "",
    ]  # fmt: skip
    if (FOLDER / "openings.json").exists():
        lines += ["## 24 openings, continued by 100 tokens", ""]
        lines += evaluation("openings.json", ["rep-2", "rep-2, tokens", "diversity"])
        lines += ["", "rep-2: word pairs (token pairs) that the same text has said before, in percent. Diversity: the "
                  "mean over the texts of (1 - rep-2)(1 - rep-3)(1 - rep-4), in percent. No chat template. "
                  f"{about('openings.json')}.", ""]  # fmt: skip
    if (FOLDER / "sums.json").exists():
        lines += ["## 100 sums in words", "", *evaluation("sums.json", ["last number", "ended"])]
        lines += ["", "Last number: percent of answers whose last number is right. Ended: percent that came to their "
                  "end within the limit of 160 tokens; an answer that is cut off may lack its result, so that a way of "
                  "writing briefly wins as well. In the chat template, "
                  f"{about('sums.json')}.", ""]  # fmt: skip
    lines += ["## Speed", "", "Steps are held against the bare forward passes beside them, texts against the plain "
              "loop. Batch 1.", "", *speeds(), ""]  # fmt: skip
    return "\n".join(lines)


def with_table(readme: str) -> str:
    """The README with its short table of the real pair."""
    head, rest = readme.split(START)
    speed = {row["method"]: row for row in read("bench-bfloat16.json")["rows"]}
    methods = ["greedy", "contrastive strength=1", "contrastive beta=0.5", "greedy repetition_penalty=1.1"]
    lines = evaluation("openings.json", ["rep-2", "diversity"], methods)
    fast = [f"{speed[name]['ratio']:.2f}" for name in ("speculative contrastive", "speculative", "DoLa")]
    text = f"In bfloat16 on two cores speculative contrastive decoding is {fast[0]} times as fast as contrastive\n"
    text += f"decoding, speculative decoding {fast[1]} times as fast as greedy; a DoLa step takes {fast[2]} "
    text += "greedy steps."
    return f"{head}{START}\n" + "\n".join([*lines, "", text]) + f"\n{END}{rest.split(END)[1]}"


if __name__ == "__main__":
    (FOLDER / "sums.jsonl").write_text(sums(), encoding="utf-8")
    PAGE.write_text(page(), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8")), encoding="utf-8")
