"""Methods side by side: `cdlearn compare` for many prompts, `cdlearn demo` for a first look."""

from __future__ import annotations

import argparse
import html
import json
import shutil
import sys
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from tqdm.auto import tqdm

from cdlearn.cli import options
from cdlearn.methods import FORM, METHODS, SCORED, Decoder, Models, build, parse
from cdlearn.pairs import Pair

DEFAULT = ("greedy", "amateur", "sample top_p=0.95", "contrastive")
DEMO = ("greedy", "amateur", "contrastive")
FLAGS = ("alpha", *FORM, "top_k")
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


def columns(pair: Pair, specs: Sequence[str], flags: Mapping[str, Any]) -> dict[str, Decoder]:
    """A decoder for each spec. flags: numbers for the methods that take them, where a spec does not say otherwise."""
    models, built = Models(pair), {}
    for spec in specs:
        name, numbers = parse(spec)
        other = FORM[1:] if "beta" in numbers else FORM[:1] if numbers.keys() & set(FORM) else ()
        shared = {key: value for key, value in flags.items() if key in METHODS[name].options and key not in other}
        built[spec] = build(models, name, shared | numbers)
    return built


def compare(
    pair: Pair, prompts: Sequence[str], decoders: Mapping[str, Decoder], args: argparse.Namespace, bar: Any = None
) -> list[dict]:
    """Return one record for each prompt and method, prompts first; stops early, marked, at an interrupt."""
    labels = {spec: METHODS[decoder.name].named(decoder.name, decoder.numbers) for spec, decoder in decoders.items()}
    shared = [label for label in labels.values() if list(labels.values()).count(label) > 1]
    records: dict[tuple[int, int], dict] = {}
    for start in range(0, len(prompts), BATCH):
        batch = list(prompts[start : start + BATCH])
        for column, (spec, decoder) in enumerate(decoders.items()):
            label = spec if labels[spec] in shared else labels[spec]
            for row, made in enumerate(options.decode(decoder, pair, batch, args, skip=start)):
                record = {"prompt": batch[row], "method": spec, "label": label, "text": made.text}
                record |= {"token_ids": list(made.token_ids), "finish_reason": made.finish_reason}
                records[start + row, column] = record | {"settings": decoder.settings}
            if bar is not None:
                bar.update(len(batch))
            if interrupted(records.values()):
                return [records[place] for place in sorted(records)]
    return [records[place] for place in sorted(records)]


def interrupted(records) -> bool:
    return any(record["finish_reason"] == "interrupted" for record in records)


def as_table(records: list[dict], *, width: int) -> str:
    """Lay out the records `width` characters wide: columns side by side, or stacked where that is too narrow."""
    blocks = []
    for rows in _by_prompt(records):
        head = wrap(f"> {options.clean(rows[0]['prompt'])}", width)
        column = (width - 3 * (len(rows) - 1)) // len(rows)
        texts = [options.clean(row["text"]).strip() or "(nothing)" for row in rows]
        if column < NARROWEST:
            body = []
            for row, text in zip(rows, texts):
                body += [f"[{row['label']}]", *(f"  {line}" for line in wrap(text, width - 2))]
        else:
            cells = [[row["label"], "-" * column, *wrap(text, column)] for row, text in zip(rows, texts)]
            height = max(len(cell) for cell in cells)
            padded = [[*cell, *[""] * (height - len(cell))] for cell in cells]
            body = [" | ".join(line + " " * (column - columns_of(line)) for line in row) for row in zip(*padded)]
        blocks.append("\n".join(line.rstrip() for line in [*head, *body]))
    return "\n\n".join(blocks)


def as_markdown(records: list[dict]) -> str:
    """Write one markdown table: a row for each prompt, a column for each method."""
    labels = list(dict.fromkeys(record["label"] for record in records))

    def cell(text: str) -> str:
        # text from a model is data: neither HTML nor table syntax
        escaped = html.escape(options.clean(text).strip(), quote=False).replace("\\", "\\\\")
        return "<br>".join(escaped.replace("|", "\\|").replace("`", "\\`").splitlines())

    lines = [["prompt", *labels], ["---"] * (len(labels) + 1)]
    for rows in _by_prompt(records):
        texts = {row["label"]: row["text"] for row in rows}
        lines.append([cell(rows[0]["prompt"]), *(cell(texts.get(name, "")) for name in labels)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_prompt(records: list[dict]) -> list[list[dict]]:
    """The records of each prompt: every one has a text of the first method."""
    groups: list[list[dict]] = []
    for record in records:
        if record["method"] == records[0]["method"]:
            groups.append([])
        groups[-1].append(record)
    return groups


def columns_of(text: str) -> int:
    """Count the terminal cells that a text takes: wide characters take two, combining ones none."""
    hidden = ("Mn", "Me", "Cf")
    return sum(
        0 if unicodedata.category(c) in hidden else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text
    )


def wrap(text: str, width: int) -> list[str]:
    """Break a text into lines of at most `width` terminal cells; words longer than a line are cut."""
    lines = []
    for paragraph in text.expandtabs(4).split("\n"):
        line = ""
        for word in paragraph.split(" "):
            while columns_of(word) > width:
                cut = next(k for k in range(len(word), 0, -1) if columns_of(word[:k]) <= width or k == 1)
                lines += [line, word[:cut]] if line else [word[:cut]]
                line, word = "", word[cut:]
            candidate = f"{line} {word}" if line else word
            if columns_of(candidate) > width:
                lines.append(line)
                candidate = word
            line = candidate
        lines.append(line)
    return lines


def read_prompts(path: str) -> list[str]:
    """Read prompts: one a line, or with the ending .jsonl one JSON object with a "prompt" (or a string) a line."""
    prompts, lines = [], options.read_lines(path)
    for at, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        if path.endswith(".jsonl"):
            try:
                value = json.loads(line)
            except json.JSONDecodeError as error:
                raise ValueError(f"--prompts-file {path}, line {at}, is not JSON: {error.msg}.") from error
            line = value.get("prompt") if isinstance(value, dict) else value
            if not isinstance(line, str):
                raise ValueError(f'--prompts-file {path}, line {at}, has no text under "prompt".')
        prompts.append(line)
    if not prompts:
        raise ValueError(f"--prompts-file {path} holds no prompt.")
    return prompts


def _spec(text: str) -> str:
    if text == "top-p":
        raise ValueError('top-p is a number of sample: write "sample top_p=0.95"')
    try:
        _, numbers = parse(text)
    except ValueError as error:
        raise ValueError(f"{error} Prompts go before --methods.") from None
    for key in numbers.keys() & set(SCORED):
        raise ValueError(f"{key}={numbers[key]} changes no text: it belongs to cdlearn eval")
    return " ".join(text.split())


def _parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = options.Parser(prog=f"cdlearn {command}", description=description, epilog=epilog)
    options.add_models(parser)
    options.add_numbers(parser, FLAGS)
    options.add_generation(parser)
    return parser


def _open(parser: argparse.ArgumentParser, args: argparse.Namespace, specs: Sequence[str]) -> tuple[Pair, dict]:
    """The pair, and the decoders of the specs with the numbers that the flags give."""
    names = [parse(spec)[0] for spec in specs]
    flags = options.numbers_of(parser, args, names)
    pair = options.open_pair(args, names)
    return pair, columns(pair, specs, flags)


def main(argv: list[str]) -> int:
    """`cdlearn compare`."""
    about = "Decode several prompts with several methods and show them side by side."
    parser = _parser("compare", about, EXAMPLES.format(methods=options.methods_help()))
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts (default: the lines of standard input)")
    parser.add_argument("--prompts-file", metavar="FILE", help='.txt: one a line; .jsonl: objects with a "prompt"')
    usual = " ".join(f'"{spec}"' if " " in spec else spec for spec in DEFAULT)
    parser.add_argument(
        "--methods", nargs="+", type=options.checked(_spec), default=DEFAULT, metavar="METHOD", help=f"default: {usual}"
    )
    parser.add_argument("--format", choices=("table", "markdown", "json"), default="table", help="default: table")
    parser.add_argument("--width", type=options.number(int, 20), help="of the table (default: the terminal's)")
    args = parser.parse_args(argv)
    prompts = args.prompts + (read_prompts(args.prompts_file) if args.prompts_file else [])
    if not prompts and not sys.stdin.isatty():
        prompts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not prompts:
        parser.error("no prompt: give some, or --prompts-file FILE, or pipe lines in")
    pair, decoders = _open(parser, args, args.methods)
    # disable=None: a bar on a terminal only, and on stderr, so that redirected output stays clean
    with tqdm(total=len(prompts) * len(decoders), unit="text", disable=None, leave=False) as bar:
        records = compare(pair, prompts, decoders, args, bar)
    if args.format == "json":
        print(json.dumps(records, ensure_ascii=False, indent=1))
    elif args.format == "markdown":
        print(as_markdown(records))
    else:
        print(as_table(records, width=args.width or _terminal_width()))
    return 130 if interrupted(records) else 0


def demo(argv: list[str]) -> int:
    """`cdlearn demo`: built-in prompts side by side, then whatever the user types."""
    about = "Expert, amateur and contrastive text side by side: first built-in prompts, then yours."
    parser = _parser("demo", about, "example: cdlearn demo --strength 1")
    args = parser.parse_args(argv)
    pair, decoders = _open(parser, args, DEMO)

    def show(prompt: str) -> None:
        records = compare(pair, [prompt], decoders, args)
        print("\n" + as_table(records, width=_terminal_width()))
        if interrupted(records):
            raise KeyboardInterrupt

    print(pair.describe())
    for prompt in DEMO_PROMPTS:
        show(prompt)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        return 0
    print("\nYour turn: type any prompt. An empty line ends.")
    while True:
        try:
            prompt = input("\nprompt: ")
        except EOFError:
            print()
            return 0
        if not prompt.strip():
            return 0
        try:
            show(prompt)
        except ValueError as error:  # too long, say: the next prompt may be better
            print(f"cdlearn: {error}")


def _terminal_width() -> int:
    return max(40, min(shutil.get_terminal_size((100, 24)).columns, 160))
