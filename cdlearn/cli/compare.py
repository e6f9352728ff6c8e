"""Methods side by side: `cdlearn compare` for many prompts, `cdlearn demo` for a first look."""

from __future__ import annotations

import argparse
import html
import json
import shutil
import sys
import textwrap
import unicodedata

from tqdm.auto import tqdm

from cdlearn.cli import options
from cdlearn.pairs.pair import Pair

METHODS = ("greedy", "amateur", "top-p", "contrastive", "dola")
DEMO_METHODS = ("greedy", "amateur", "contrastive")
DEMO_PROMPTS = (
    "Ada had a red ball. She had a dog too. They lived near the park.",
    "Rosa has the ring. Tom has the key. Rosa gives the ring to Sam. Sam gives the ring to Mia. Who has the ring?",
    "What is the capital of Turkey?",
    "Tell a story about Ben and a blue boat.",
)
BATCH = 16
NARROWEST = 22  # a column with fewer characters is harder to read than a list


def compare(pair: Pair, prompts: list[str], methods: tuple[str, ...], args: argparse.Namespace, bar=None) -> list[dict]:
    """Return one record for each prompt and method, prompts first; stops early, marked, at an interrupt."""
    done: dict[tuple[int, str], dict] = {}
    for start in range(0, len(prompts), BATCH):
        chosen = prompts[start : start + BATCH]
        for method in methods:
            settings = argparse.Namespace(**vars(args))
            settings.seed, kind = args.seed + start, method
            if method == "top-p":
                kind, settings.temperature, settings.top_p, settings.top_k = "sample", 1.0, args.nucleus, 0
            texts, numbers = options.run_method(kind, pair, chosen, settings, progress=False)
            for k, made in enumerate(texts):
                record = {"prompt": chosen[k], "method": method, "label": label(method, settings), "text": made.text}
                record |= {"token_ids": list(made.token_ids), "finish_reason": made.finish_reason}
                record["settings"] = numbers
                done[start + k, method] = record
            if bar is not None:
                bar.update(len(chosen))
            if any(record["finish_reason"] == "interrupted" for record in done.values()):
                return _in_order(done, methods)
    return _in_order(done, methods)


def _in_order(done: dict, methods: tuple[str, ...]) -> list[dict]:
    return [done[key] for key in sorted(done, key=lambda key: (key[0], methods.index(key[1])))]


def label(method: str, args: argparse.Namespace) -> str:
    """Name a method for a column: which model, and the number that matters."""
    if method == "contrastive":
        if args.strength is not None or args.tau_amateur is not None:
            return f"contrastive (strength {1.0 if args.strength is None else args.strength:g})"
        return f"contrastive (beta {0.5 if args.beta is None else args.beta:g})"
    names = {"greedy": "expert, greedy", "amateur": "amateur, greedy", "dola": "expert, DoLa"}
    return names.get(method) or f"expert, top-p {args.nucleus:g}"


def as_table(records: list[dict], *, width: int) -> str:
    """Lay out the records `width` characters wide: columns side by side, or stacked where that is too narrow."""
    blocks = []
    for prompt, rows in _by_prompt(records):
        head = wrap(f"> {options.clean(prompt)}", width)
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
    grouped = _by_prompt(records)
    labels = list(dict.fromkeys(record["label"] for record in records))

    def cell(text: str) -> str:
        # text from a model is data: neither HTML nor table syntax
        escaped = html.escape(options.clean(text).strip(), quote=False).replace("\\", "\\\\")
        return "<br>".join(escaped.replace("|", "\\|").replace("`", "\\`").splitlines())

    lines = [["prompt", *labels], ["---"] * (len(labels) + 1)]
    for prompt, rows in grouped:
        texts = {row["label"]: row["text"] for row in rows}
        lines.append([cell(prompt), *(cell(texts.get(name, "")) for name in labels)])
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _by_prompt(records: list[dict]) -> list[tuple[str, list[dict]]]:
    """Group neighbours: a prompt asked twice stays two groups, because its methods start again."""
    groups: list[tuple[str, list[dict]]] = []
    for record in records:
        if not groups or groups[-1][0] != record["prompt"] or record["method"] == groups[-1][1][0]["method"]:
            groups.append((record["prompt"], []))
        groups[-1][1].append(record)
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


def _parser(command: str, description: str, epilog: str) -> argparse.ArgumentParser:
    parser = options.Parser(prog=f"cdlearn {command}", description=description, epilog=textwrap.dedent(epilog))
    options.add_models(parser)
    options.add_contrast(parser)
    options.add_generation(parser)
    return parser


def _method(text: str) -> str:
    if text not in METHODS:
        raise argparse.ArgumentTypeError(
            f"invalid choice: {text!r} is no method ({', '.join(METHODS)}); prompts go before --methods"
        )
    return text


def main(argv: list[str]) -> int:
    """`cdlearn compare`."""
    parser = _parser(
        "compare",
        "Decode several prompts with several methods and show them side by side.",
        """
        examples:
          cdlearn compare "Ada had a red" "Ben had a dog"
          cdlearn compare --prompts-file prompts.jsonl --format json > texts.json
          cdlearn compare "Who are you?" --methods greedy contrastive dola --format markdown
        """,
    )
    parser.add_argument("prompts", nargs="*", metavar="PROMPT", help="texts (default: the lines of standard input)")
    parser.add_argument("--prompts-file", metavar="FILE", help='.txt: one a line; .jsonl: objects with a "prompt"')
    parser.add_argument("--methods", nargs="+", type=_method, default=list(METHODS[:4]), metavar="METHOD")
    parser.add_argument(
        "--top-p", dest="nucleus", type=options.number(float, 0, 1, above=True), default=0.95, help="default: 0.95"
    )
    parser.add_argument("--format", choices=("table", "markdown", "json"), default="table", help="default: table")
    parser.add_argument("--width", type=options.number(int, 20), help="of the table (default: the terminal's)")
    args = parser.parse_args(argv)
    options.check_flags(parser, args)
    prompts = list(args.prompts)
    if args.prompts_file:
        prompts += read_prompts(args.prompts_file)
    if not prompts and not sys.stdin.isatty():
        prompts = [line for line in sys.stdin.read().splitlines() if line.strip()]
    if not prompts:
        parser.error("no prompt: give some, or --prompts-file FILE, or pipe lines in")
    methods = tuple(dict.fromkeys(args.methods))
    pair = options.open_pair(args, methods)
    # disable=None: a bar on a terminal only, and on stderr, so that redirected output stays clean
    with tqdm(total=len(prompts) * len(methods), unit="text", disable=None, leave=False) as bar:
        records = compare(pair, prompts, methods, args, bar)
    if args.format == "json":
        print(json.dumps(records, ensure_ascii=False, indent=1))
    elif args.format == "markdown":
        print(as_markdown(records))
    else:
        print(as_table(records, width=args.width or _terminal_width()))
    return 130 if any(record["finish_reason"] == "interrupted" for record in records) else 0


def demo(argv: list[str]) -> int:
    """`cdlearn demo`: built-in prompts side by side, then whatever the user types."""
    parser = _parser(
        "demo",
        "Expert, amateur and contrastive text side by side: first built-in prompts, then yours.",
        """
        example:
          cdlearn demo --strength 1
        """,
    )
    args = parser.parse_args(argv)
    options.check_flags(parser, args)
    pair = options.open_pair(args)
    print(pair.describe())
    for prompt in DEMO_PROMPTS:
        _show(pair, prompt, args)
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
            _show(pair, prompt, args)
        except ValueError as error:  # too long, say: the next prompt may be better
            print(f"cdlearn: {error}")


def _show(pair: Pair, prompt: str, args: argparse.Namespace) -> None:
    records = compare(pair, [prompt], DEMO_METHODS, args)
    print("\n" + as_table(records, width=_terminal_width()))
    if any(record["finish_reason"] == "interrupted" for record in records):
        raise KeyboardInterrupt


def _terminal_width() -> int:
    return max(40, min(shutil.get_terminal_size((100, 24)).columns, 160))
