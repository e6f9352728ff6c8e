"""Methods side by side: `cdlearn compare` for your prompts, `cdlearn demo` for built-in ones."""

from __future__ import annotations

import argparse
import contextlib
import html
import json
import os
import shutil
import sys
import unicodedata
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from itertools import accumulate, zip_longest

from cdlearn.cli import options
from cdlearn.evaluate.questions import read_prompts
from cdlearn.methods import SCORED, Decoder, Models, build, parse
from cdlearn.pairs import Pair

DEFAULT = ("greedy", "amateur", "sample top_p=0.95", "contrastive")
DEMO = ("greedy", "amateur", "contrastive")
# heads of the usual columns; any other is headed as its method is spelled
HEADS = {"greedy": "expert, greedy", "amateur": "amateur, greedy", "sample top_p=0.95": "expert, top-p 0.95"}
ROLES = {"greedy": 34, "sample": 34, "amateur": 33, "contrastive": 32}  # blue, orange, green, as in every figure
HEADS |= {"contrastive": "contrastive (beta 0.5)"}
DEMO_PROMPTS = (
    "Ada had a red ball. She had a dog too. They lived near the park.",
    "Rosa has the ring. Tom has the key. Rosa gives the ring to Sam. Sam gives the ring to Mia. Who has the ring?",
    "What is the capital of Turkey?",
    "Tell a story about Ben and a blue boat.",
)
BATCH = 16
NARROWEST = 22  # a column with fewer characters is harder to read than a list
EXAMPLES = """
methods, and the numbers they take, as in "contrastive beta=1 alpha=0.3":
{methods}

examples:
  cdlearn compare "Ada had a red" "Ben had a dog"
  cdlearn compare --prompts-file prompts.jsonl --format json > texts.json
  cdlearn compare "Who are you?" --methods greedy "sample top_p=0.9" "contrastive beta=1" --format markdown
"""


def compare(
    pair: Pair, prompts: Sequence[str], decoders: Mapping[str, Decoder], args: argparse.Namespace
) -> list[list[dict]]:
    """Return for each prompt one record per method; stops early, marked, at an interrupt."""
    groups = [[] for _ in prompts]
    with options.bar(len(prompts) * len(decoders)) as bar:
        for start in range(0, len(prompts), BATCH):
            batch = list(prompts[start : start + BATCH])
            for spec, decoder in decoders.items():
                texts = options.decode(decoder, pair, batch, args, skip=start)
                for group, prompt, made in zip(groups[start:], batch, texts):
                    record = {"prompt": prompt, "method": spec, "text": made.text, "token_ids": list(made.token_ids)}
                    record |= {"finish_reason": made.finish_reason, "settings": decoder.settings, "stats": made.stats}
                    group.append(record)
                bar.update(len(batch))
                if any(made.finish_reason == "interrupted" for made in texts):
                    return groups[: start + len(batch)]
    return groups


def head(record: dict) -> str:
    return HEADS.get(record["method"], record["method"])


def as_table(groups: list[list[dict]], *, width: int, colour: bool = False) -> str:
    """Lay out the records `width` characters wide: columns side by side, or stacked where that is too narrow."""
    blocks = []

    def painted(cell: str, row: dict) -> str:
        code = ROLES.get(row["method"].split()[0])
        return f"\x1b[{code}m{cell}\x1b[0m" if colour and code and cell else cell

    for rows in groups:
        lines = wrap(f"> {options.clean(rows[0]['prompt'])}", width)
        column = (width - 3 * (len(rows) - 1)) // len(rows)
        texts = [options.clean(row["text"]).strip() or "(nothing)" for row in rows]
        if column < NARROWEST:
            for row, text in zip(rows, texts):
                found = [*wrap(f"[{head(row)}]", width), *(f"  {line}" for line in wrap(text, width - 2))]
                lines += [painted(line, row) for line in found]
        else:
            heads = zip(*zip_longest(*(wrap(head(row), column) for row in rows), fillvalue=""))
            stacks = [[*lines_of_head, "-" * column, *wrap(text, column)] for lines_of_head, text in zip(heads, texts)]
            for line in zip_longest(*stacks, fillvalue=""):
                pads = [" " * (column - sum(map(cells, cell))) for cell in line]
                parts = [painted(cell, row) + pad for cell, row, pad in zip(line, rows, pads)]
                lines.append(" | ".join(parts).rstrip())
        blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def as_markdown(groups: list[list[dict]]) -> str:

    def cell(text: str) -> str:
        # text from a model is data: neither HTML nor table syntax
        escaped = html.escape(options.clean(text).strip(), quote=False).replace("\\", "\\\\")
        return "<br>".join(escaped.replace("|", "\\|").replace("`", "\\`").splitlines())

    heads = [head(row) for row in groups[0]]
    lines = [["prompt", *heads], ["---"] * (len(heads) + 1)]
    for rows in groups:
        texts = [row["text"] for row in rows] + [""] * (len(heads) - len(rows))  # an interrupt leaves some out
        lines.append(list(map(cell, [rows[0]["prompt"], *texts])))
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cells(character: str) -> int:
    """The terminal cells that a character takes: wide ones take two, combining ones none."""
    wide = unicodedata.east_asian_width(character) in "WF"
    return 0 if unicodedata.category(character) in ("Mn", "Me", "Cf") else 1 + wide


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` terminal cells, at spaces where there are any."""
    lines = []
    for line in text.expandtabs(4).split("\n"):
        while (most := bisect_right(list(accumulate(map(cells, line))), width)) < len(line):
            end = line.rfind(" ", 1, most + 1)
            end = end if end > 0 else max(most, 1)
            lines.append(line[:end].rstrip())
            line = line[end:].lstrip(" ")
        lines.append(line.rstrip())
    return lines


def _spec(text: str) -> str:
    for key in parse(text)[1].keys() & set(SCORED):
        raise ValueError(f"{text}: {key} changes no text, it belongs to cdlearn eval")
    return options.spec(text)


def demo(argv: list[str]) -> int:
    """`cdlearn demo`: built-in prompts side by side, then whatever the user types."""
    start = ["--methods", *DEMO, *argv, "--"]
    code = main([*start, *DEMO_PROMPTS])
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return code
    print("\nYour turn: type any prompt. An empty line ends.")
    with contextlib.suppress(EOFError):
        while prompt := input("\nprompt: ").strip():
            try:
                main([*start, prompt])
            except ValueError as error:  # too long, say: the next prompt may be better
                print(f"cdlearn: {error}")
    return 0


def main(argv: list[str]) -> int:
    parser = options.Parser(
        prog="cdlearn compare",
        description="Decode several prompts with several methods and show them side by side.",
        epilog=EXAMPLES.format(methods=options.methods_help()),
    )
    options.add_models(parser)
    options.add_numbers(parser)
    options.add_generation(parser)
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts (default: the lines of standard input)")
    parser.add_argument("--prompts-file", metavar="FILE", help='.txt: one a line; .jsonl: objects with a "prompt"')
    parser.add_argument(
        "--methods", nargs="+", type=options.checked(_spec), default=DEFAULT, metavar="METHOD",
        help="after the prompts; default: " + " ".join(f'"{spec}"' if " " in spec else spec for spec in DEFAULT),
    )  # fmt: skip
    parser.add_argument("--format", choices=("table", "markdown", "json"), default="table", help="default: table")
    terminal = max(40, min(shutil.get_terminal_size((100, 24)).columns, 160))
    parser.add_argument("--width", type=options.number(int, 20), default=terminal, help="default: the terminal's")
    args = parser.parse_args(argv)
    read = read_prompts(args.prompts_file) if args.prompts_file else []
    prompts = args.prompts + [value["prompt"] for _, value in read]
    if not prompts and not sys.stdin.isatty():
        prompts = [line for line in sys.stdin.read().split("\n") if line.strip()]
    if not prompts:
        parser.error("no prompt: give some, or --prompts-file FILE, or pipe lines in")
    parsed = {spec: parse(spec) for spec in options.with_numbers(parser, args, args.methods)}
    pair = options.open_pair(args, [name for name, _ in parsed.values()])
    models = Models(pair)
    decoders = {spec: build(models, *method) for spec, method in parsed.items()}
    groups = compare(pair, prompts, decoders, args)
    records = sum(groups, [])
    if args.format == "json":
        print(json.dumps(records, ensure_ascii=False, indent=1))
    elif args.format == "markdown":
        print(as_markdown(groups))
    else:
        colour = sys.stdout.isatty() and not os.environ.get("NO_COLOR")  # no-color.org
        print(as_table(groups, width=args.width, colour=colour))
    return 130 if any(record["finish_reason"] == "interrupted" for record in records) else 0
