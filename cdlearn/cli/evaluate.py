"""`cdlearn eval`: methods x tasks, of the toy world or of a prompts file."""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import sys
import textwrap
import time
from pathlib import Path

import torch

from cdlearn.cli import options
from cdlearn.evaluate.answers import Tasks, evaluate, fingerprint
from cdlearn.evaluate.folder import Records
from cdlearn.evaluate.questions import FORMAT, GRADES, read_questions
from cdlearn.evaluate.report import legend, table, to_frame
from cdlearn.evaluate.toyworld import USUAL, table_rows
from cdlearn.methods import METHODS, OPTIONS, Models, parse
from cdlearn.pairs.pair import Pair
from cdlearn.toyworld.tasks import TASKS

BATCH, BATCH_OF_OTHERS = 100, 16  # of the embedded models, and of models that are larger
FILE_FLAGS = ("max_new_tokens", "stop", "grade", "chat_template", "system_prompt")
EXAMPLES = """
A prompts file holds {format}.
"grade": "contains", "exact" or "last number" in a line says when a text is right (numbers count as numbers).

methods, each with its numbers as in "contrastive beta=0.5 alpha=0.1":
{methods}

examples:
  cdlearn eval                                                  the table of the embedded pair
  cdlearn eval --prompts-file questions.jsonl --methods greedy "contrastive beta=0.5" --out runs/questions
  cdlearn eval --expert Qwen/Qwen3-4B --amateur Qwen/Qwen3-0.6B --prompts-file questions.jsonl --out runs/qwen
"""


def build_parser() -> argparse.ArgumentParser:
    parser = options.Parser(
        prog="cdlearn eval",
        description="Methods x tasks: percentages, 95% bootstrap intervals, paired difference to greedy.",
        epilog=EXAMPLES.format(format=textwrap.fill(FORMAT, 100), methods=options.methods_help()),
    )
    count = options.number(int, 1)
    options.add_models(parser)
    tasks = parser.add_mutually_exclusive_group()
    tasks.add_argument("--tasks", nargs="+", choices=list(TASKS), help="of the toy world (default: all)")
    tasks.add_argument("--prompts-file", metavar="FILE", help="JSON lines of your own, see below")
    method = options.checked(options.spec)
    parser.add_argument("--methods", nargs="+", type=method, metavar="METHOD", help="see below (default: the usual)")
    parser.add_argument("-n", type=count, help="items of a task, places of facts (default: 500, files all)")
    parser.add_argument("--seed", type=options.number(int, 0), default=0)
    parser.add_argument("--no-grid", action="store_true", help="leave out the puzzles over alpha and beta")
    parser.add_argument("--batch", type=count, help=f"prompts at once (default: {BATCH}, others {BATCH_OF_OTHERS})")
    parser.add_argument("--out", type=Path, metavar="DIR", help="keep answers and results.csv; can be resumed")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the set-up to FILE as well")
    options.add_numbers(parser, scored=True)
    file = parser.add_argument_group("with --prompts-file")
    file.add_argument("--max-new-tokens", type=count, help="default: 64")
    file.add_argument("--stop", nargs="+", metavar="TEXT", help="texts that end an answer")
    file.add_argument("--grade", choices=GRADES, help="of lines that do not say theirs (default: contains, and exact)")
    file.add_argument("--chat-template", action="store_true", help="put the prompts into the chat template")
    file.add_argument("--system-prompt", metavar="TEXT", help="goes into the chat template")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `cdlearn eval`; returns the exit code. Raises ValueError or OSError for what the command line shows."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    start = time.time()
    whole = not (args.methods or args.prompts_file)  # the toy world's own table
    early = args.expert is None  # the embedded expert has an early checkpoint
    usual = [spec for spec in USUAL if whole or early or args.amateur or not METHODS[parse(spec)[0]].needs]
    specs = list(dict.fromkeys(options.with_numbers(parser, args, args.methods or usual)))
    pair = options.open_pair(args, [parse(spec)[0] for spec in specs])
    models, tasks = Models(pair), _tasks(args, pair)
    try:
        with Records(args.out, args.out and _settings(args, pair, tasks)) as records:
            before = len(records)
            if records.odd:
                lines = ", ".join(map(str, records.odd[:9]))
                print(f"--out {args.out}: answers.jsonl, line {lines}: no answer, left out", file=sys.stderr)
            settings = {"seed": args.seed, "batch": args.batch, "records": records}
            if whole:
                rows = table_rows(tasks, models, early=early, grid=not args.no_grid, **settings)
            else:
                rows = evaluate(tasks, dict.fromkeys(tasks, specs), models, stop=args.stop, **settings)
    except KeyboardInterrupt:
        if args.out:
            print(f"\nstopped; the same command goes on with what is in {args.out}", file=sys.stderr)
        raise
    seconds, threads = round(time.time() - start), torch.get_num_threads()
    print(table(rows))
    print("\npercent with 95% bootstrap intervals, and the paired difference to greedy with its own\n" + legend(rows))
    if args.out:
        to_frame(rows).to_csv(args.out / "results.csv", index=False, lineterminator="\n")
        print(f"\nanswers ({before} were there already) and numbers: answers.jsonl and results.csv in {args.out}")
    if args.json:
        setup = {"seed": args.seed, "n": args.n, "seconds": seconds, "threads": threads, "torch": torch.__version__}
        args.json.write_text(json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")
    print(f"\n{seconds} s on {threads} threads, seed {args.seed}")
    return 0


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what is wrong or would change nothing, before any model is loaded; fill in the defaults."""
    file, whole = args.prompts_file, not (args.methods or args.prompts_file)
    for flag in FILE_FLAGS:
        if getattr(args, flag) and not file:
            parser.error(f"--{flag.replace('_', '-')} belongs to --prompts-file: the toy world's tasks know their own")
    if args.system_prompt and not args.chat_template:
        parser.error("--system-prompt goes into the chat template: add --chat-template")
    for name in OPTIONS:
        if whole and getattr(args, name) is not None:
            parser.error(f"{options.flag(name)} needs --methods: the toy world's own table has its own numbers")
    if "" in (args.stop or ()):
        parser.error("--stop '' ends every answer at once: give a text")
    if args.no_grid and not whole:
        parser.error("--no-grid changes nothing here: the grid belongs to the toy world's own table")
    if args.json:  # an error now, not after hours
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.open("a").close()
    args.batch = args.batch or (BATCH_OF_OTHERS if args.expert else BATCH)
    args.n, args.max_new_tokens = args.n or (None if file else 500), args.max_new_tokens or (64 if file else None)


def _tasks(args: argparse.Namespace, pair: Pair) -> Tasks:
    if not args.prompts_file:
        return {name: (TASKS[name], TASKS[name].items(args.n, args.seed)) for name in args.tasks or TASKS}
    render = functools.partial(pair.prompt, system=args.system_prompt, chat=args.chat_template)
    settings = {"n": args.n, "max_new_tokens": args.max_new_tokens, "grade": args.grade}
    return read_questions(args.prompts_file, render=render, **settings)


def _settings(args: argparse.Namespace, pair: Pair, tasks: Tasks) -> dict[str, object]:
    """Everything that an answer depends on, and nothing else: a folder is bound to it."""
    settings = {"expert": fingerprint(pair.expert), "amateur": fingerprint(pair.amateur)}
    settings |= {"device": pair.expert.device.type, "prompts": "the toy world's"}
    settings |= {name: getattr(args, name) for name in ("seed", "batch", "stop", "max_new_tokens", "n")}
    if args.prompts_file:
        prompts = [(item.prompt, getattr(item.gold, "texts", ())) for _, items in tasks.values() for item in items]
        settings["prompts"] = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:12]
    return settings
