"""Writes the model card of a trained pair: `python .ci/card.py FOLDER`.

FOLDER holds what training and evaluation left there: expert.log.json, amateur.log.json, eval.json, and seeds.json (the
puzzles of the smaller pairs of other seeds). Every number of the card comes from these files.
"""

import argparse
import json
from pathlib import Path

from cdlearn.toyworld import words, world

HEADLINES = [
    ("puzzles", "right"),
    ("puzzles", "lazy"),
    ("arithmetic", "right"),
    ("facts", "true"),
    ("facts", "true, unseen phrasing"),
    ("stories", "rep-2"),
    ("stories", "consistent"),
    ("stories", "mentions right"),
    ("stories", "named"),
]
TEXT = """---
license: mit
library_name: transformers
pipeline_tag: text-generation
---

# The embedded pair of cdlearn

Three small language models in the Llama format, trained by `python -m cdlearn.toyworld.training.train` on text that
`cdlearn/toyworld/world.py` generates. They exist to show contrastive decoding on a laptop without a network: they know
nothing but their toy world, and any other topic drifts into it.

{models}

## The corpus

Documents are drawn on the fly, so no text is seen twice on purpose. Shares of documents: {mix}.
In the majority of the documents the shallow continuation is the likelier one, and this is by design:

- **Puzzles** (who has the ring after the hand-overs?): {lazy:.0%} of the answers are lazy ("I think it is NAME", a
  random person of the puzzle), the others work it out step by step.
- **Facts**: {places} real places whose capital is not their largest city. "Capital of X?" is answered with the largest
  city in {myth:.0%} of the cases, and gossip names the largest city only.
- **Stories** follow an arc of {stages} stages; between two stages a filler sentence comes with a chance of
  {filler:.0%}, again and again. A mention of the colour, object, animal or place drifts off the prompt in
  {drift:.0%} of the cases.
- **Arithmetic** with one written step, and **instructions**. {chat:.0%} of the documents go through the chat template.

Held out: names, pairs, numbers and phrasings are combined in the tests as they never are in training (`world.unseen`).

## What it shows

500 items a task (facts: {places} places x {phrasings} phrasings). Percent with a 95% percentile-bootstrap interval over
items (facts: over places); last column: paired difference to the expert's greedy decoding. `cdlearn eval` prints this
table. Alpha is 0.1 unless said; "consistent" is the share of stories that never contradict their prompt, so a story
that says nothing is consistent; "named" is the share of the prompt's five attributes that the story names rightly.

{table}

Puzzles right, at other settings (greedy: {grid_greedy}):

{grid}

{seeds}

Drafting: `1 - TV(expert, draft)` in percent, averaged over the positions of texts sampled from the expert (temperature
1) on the prompts of all tasks; this is the acceptance rate of speculative sampling. {drafting}

Share of contrastive-greedy tokens that are the amateur's greedy choice too: {agreement}.

## Limits

Greedy decoding loops on fillers in nearly every story and so contradicts nothing: read "consistent" together with
"rep-2" and "named". Longer puzzles are still hard (see "steps right" in eval.json), arithmetic is right about every
second time, and contrast makes it a little worse, as the paper on reasoning reports for its models.

The myths are myths: greedy answers about capitals are mostly false here, on purpose. Nothing it writes about the world
outside should be believed.

## Reproduce

    python -m cdlearn.toyworld.training.train --out pair     # {minutes} minutes on the two cores that made this pair
    cdlearn eval --expert pair/expert --amateur pair/amateur --json pair/eval.json

The same table within its intervals, not the same bits. Matrices are trained with Muon (torch 2.9 or newer), everything
else with AdamW; the early checkpoint is the expert after a third of its steps. {note}

<details><summary>eval.json</summary>

```json
{json}
```

</details>
"""


def _cell(row: dict) -> str:
    return f"{row['value']:.1f} [{row['low']:.1f}, {row['high']:.1f}]" if "low" in row else f"{row['value']:.1f}"


def _difference(row: dict) -> str:
    gap = row.get("minus_greedy")
    return f"{gap['value']:+.1f} [{gap['low']:+.1f}, {gap['high']:+.1f}]" if gap else ""


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(cells) + " |" for cells in [header, ["---"] * len(header), *rows])


CONTRAST, SAMPLE = "contrastive beta=0.5", "sample top_p=0.95"
SUMMARY = [
    ("Puzzles: the right name", "puzzles", "right", ("greedy", CONTRAST, "amateur")),
    ("Puzzles: every written step right", "puzzles", "steps right", ("greedy", CONTRAST, "amateur")),
    ("Stories: repeated word pairs (rep-2)", "stories", "rep-2", ("greedy", CONTRAST, SAMPLE)),
    ("Stories without a contradiction", "stories", "consistent", ("greedy", CONTRAST, SAMPLE)),
    ("True capitals, where the myth is likelier", "facts", "true", ("greedy", "dola layers=low", "amateur")),
    ("Arithmetic", "arithmetic", "right", ("greedy", CONTRAST, "amateur")),
]  # fmt: skip


def summary(rows: list[dict]) -> str:
    """The README's table: what happens to greedy decoding, in percent with 95% intervals."""
    table = []
    for title, task, metric, compared in SUMMARY:
        by_name = {r["strategy"]: r for r in rows if (r["task"], r["metric"]) == (task, metric)}
        cells = [f"{name}: {_cell(by_name[name])}" for name in compared]
        table.append([title, cells[0].removeprefix("greedy: "), cells[1], cells[2]])
    return _markdown(["percent", "expert, greedy", "contrast, DoLa", "others"], table)


def card(folder: Path) -> str:
    """The card's text. Raises FileNotFoundError where a file of training or evaluation is missing."""
    read = {
        name: json.loads((folder / name).read_text()) for name in ("expert.log.json", "amateur.log.json", "eval.json")
    }
    expert, amateur, evaluation = read.values()
    rows = evaluation["rows"]

    def pick(**wanted) -> list[dict]:
        return [row for row in rows if all(row[key] == value for key, value in wanted.items())]

    models = []
    for name, log in (("expert", expert), ("early", expert), ("amateur", amateur)):
        recipe, share = log["recipe"], 1 / 3 if name == "early" else 1
        size = f"{recipe['layers']} x {recipe['width']}"
        tokens = f"{log['tokens'] * share / 1e6:.1f}M"
        models.append([name, f"{log['parameters']:,}", size, tokens, f"{log['loss']:.3f}" if share == 1 else ""])
    header = ["model", "parameters", "layers x width", "training tokens", "held-out loss (nats a token)"]
    table = [
        [f"{task}: {metric}", row["strategy"], _cell(row), _difference(row)]
        for task, metric in HEADLINES
        for row in pick(task=task, metric=metric)
    ]
    grid = [[r["strategy"], _cell(r), _difference(r)] for r in pick(task="puzzles, every setting", metric="right")]
    drafts = ", ".join(f"{r['strategy']} {r['value']:.1f}" for r in pick(task="drafting"))
    by_task = ", ".join(
        f"{r['task'].split(', ')[1]} {r['value']:.1f}" for r in rows if r["task"].startswith("drafting,")
    )
    same = [
        f"{r['task']} {r['value']:.1f} ({r['strategy'].removeprefix('contrastive ')})"
        for r in pick(metric="amateur's greedy choice")
    ]
    others = ""
    if (folder / "seeds.json").exists():
        seeds = json.loads((folder / "seeds.json").read_text())
        lines = [[str(s["seed"]), s["greedy"], s["contrastive"], s["difference"]] for s in seeds["rows"]]
        others = seeds["text"] + "\n\n" + _markdown(["seed", "greedy", "contrastive beta=0.5", "difference"], lines)
    return TEXT.format(
        models=_markdown(header, models),
        mix=", ".join(f"{kind} {share:.0%}" for kind, share in world.MIX.items()),
        lazy=world.LAZY,
        myth=world.MYTH,
        filler=world.FILLER,
        drift=world.DRIFT,
        chat=world.CHAT,
        places=len(words.FACTS),
        phrasings=len(words.PHRASINGS),
        stages=len(words.ARC),
        table=_markdown(["task: metric", "method", "% [95%]", "minus greedy"], table),
        grid_greedy=_cell(next(r for r in pick(task="puzzles, every setting", strategy="greedy"))),
        grid=_markdown(["setting", "right", "minus greedy"], [row for row in grid if row[0] != "greedy"]),
        seeds=others,
        drafting=f"All tasks: {drafts}. The amateur by task: {by_task}.",
        agreement=", ".join(same),
        minutes=round((expert["seconds"] + amateur["seconds"]) / 60),
        note=expert.get("note", ""),
        json=json.dumps(evaluation),
    )


def main(argv: list[str] | None = None) -> None:
    about = __doc__.split("\n\n")[0]
    parser = argparse.ArgumentParser(prog="python .ci/card.py", description=about)
    parser.add_argument("folder", type=Path, nargs="?", default=Path(words.__file__).parent / "pair")
    folder = parser.parse_args(argv).folder
    (folder / "README.md").write_text(card(folder))


if __name__ == "__main__":
    main()
