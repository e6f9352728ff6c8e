"""`cdlearn eval`: methods x tasks, of the toy world or of a prompts file."""

from __future__ import annotations

import argparse
import hashlib
import json
import platform
import sys
import textwrap
import time
from pathlib import Path

import torch

from cdlearn.cli import options
from cdlearn.evaluate.answers import evaluate, fingerprint
from cdlearn.evaluate.figures import write_figures
from cdlearn.evaluate.folder import Records, RunFolder
from cdlearn.evaluate.questions import FORMAT, read_questions
from cdlearn.evaluate.report import legend, table, write_csv
from cdlearn.evaluate.toyworld import USUAL, Tasks, table_rows, toy_tasks
from cdlearn.methods import METHODS, Models, parse
from cdlearn.pairs.pair import Pair
from cdlearn.toyworld.tasks import TASKS

BATCH, BATCH_OF_OTHERS = 100, 16  # of the embedded models, and of models that are larger
FILE_FLAGS = ("max_new_tokens", "stop", "chat_template", "system_prompt")
EXAMPLES = """
A prompts file holds {format}.

methods, each with its numbers as in "contrastive beta=0.5 alpha=0.1":
{methods}

examples:
  cdlearn eval                                                  the table of the embedded pair
  cdlearn eval --tasks puzzles facts --json results.json
  cdlearn eval --tasks stories --seeds 5 --out runs/stories --figures runs/stories
  cdlearn eval --prompts-file questions.jsonl --methods greedy "contrastive beta=0.5" --out runs/questions
  cdlearn eval --expert Qwen/Qwen3-4B --amateur Qwen/Qwen3-0.6B --prompts-file questions.jsonl --out runs/qwen
"""


def build_parser() -> argparse.ArgumentParser:
    known = "\n".join(f"  {name:24} {', '.join(method.options)}" for name, method in METHODS.items())
    parser = options.Parser(
        prog="cdlearn eval",
        description="Methods x tasks: percentages, 95% bootstrap intervals, paired difference to greedy.",
        epilog=EXAMPLES.format(format=textwrap.fill(FORMAT, 100), methods=known),
    )
    options.add_models(parser)
    what = parser.add_argument_group("what is compared")
    tasks = what.add_mutually_exclusive_group()
    tasks.add_argument("--tasks", nargs="+", choices=list(TASKS), help="of the toy world (default: all)")
    tasks.add_argument("--prompts-file", metavar="FILE", help="JSON lines of your own, see below")
    what.add_argument("--methods", nargs="+", metavar="METHOD", help="see below (default: the usual ones)")
    count = options.number(int, 1)
    what.add_argument("-n", type=count, help="items of a task, places of facts (default: 500, files all)")
    what.add_argument("--seed", type=options.number(int, 0), default=0)
    what.add_argument("--seeds", type=count, default=1, metavar="N", help="runs of methods that sample (default: 1)")
    what.add_argument("--no-grid", action="store_true", help="leave out the puzzles over alpha and beta")
    what.add_argument("--batch", type=count, help=f"prompts at once (default: {BATCH}, other models {BATCH_OF_OTHERS})")
    file = parser.add_argument_group("with --prompts-file")
    file.add_argument("--max-new-tokens", type=count, help="default: 64")
    file.add_argument("--stop", nargs="+", metavar="TEXT", help="texts that end an answer")
    file.add_argument("--chat-template", action="store_true", help="put the prompts into the chat template")
    file.add_argument("--system-prompt", metavar="TEXT", help="goes into the chat template")
    out = parser.add_argument_group("where it goes")
    out.add_argument("--out", type=Path, metavar="DIR", help="keep every answer in DIR; the same command continues")
    out.add_argument("--csv", type=Path, metavar="FILE", help="one row per method, task and metric")
    out.add_argument("--json", type=Path, metavar="FILE", help="write the rows and the set-up to FILE as well")
    out.add_argument("--figures", type=Path, metavar="DIR", help="write scores and diversity there, PNG and SVG")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run `cdlearn eval`; returns the exit code. Raises ValueError or OSError for what the command line shows."""
    parser = build_parser()
    args = parser.parse_args(argv)
    _check(parser, args)
    start = time.time()
    whole = not (args.methods or args.prompts_file)  # the toy world's own table
    early = args.expert is None  # the embedded expert has an early checkpoint
    specs = args.methods or [spec for spec in USUAL if whole or early or args.amateur or not _needs(spec)]
    pair = options.open_pair(args, tuple(parse(spec)[0] for spec in specs))
    models, tasks = Models(pair), _tasks(args, pair)
    try:
        with _records(args, pair, tasks) as records:
            before = len(records)
            settings = {"seed": args.seed, "runs": args.seeds, "batch": args.batch, "records": records}
            settings["texts"] = any((args.methods, args.prompts_file, args.out, args.csv, args.figures))
            if whole:
                rows = table_rows(tasks, models, early=early, grid=not args.no_grid, **settings)
            else:
                rows = evaluate(tasks, dict.fromkeys(tasks, specs), models, stop=args.stop, **settings)
    except KeyboardInterrupt:
        if args.out:
            print(f"\nstopped; the same command goes on with what is in {args.out}", file=sys.stderr)
        raise
    print(table(rows))
    print("\npercent, [95% bootstrap interval], difference to greedy with its interval\n" + legend(rows))
    if args.out:
        print(f"\nanswers ({before} were there already) and numbers: answers.jsonl and results.csv in {args.out}")
    seconds = time.time() - start
    print(f"\n{seconds:.0f} s on {torch.get_num_threads()} threads, seed {args.seed}")
    _write(args, rows, {name: task.headline for name, (task, _) in tasks.items()}, seconds)
    return 0


def _needs(spec: str) -> tuple[str, ...]:
    return METHODS[parse(spec)[0]].needs


def _check(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse what is wrong or would change nothing, before any model is loaded; fill in the defaults."""
    for flag in FILE_FLAGS:
        if getattr(args, flag) and not args.prompts_file:
            parser.error(f"--{flag.replace('_', '-')} belongs to --prompts-file: the toy world's tasks know their own")
    if args.system_prompt and not args.chat_template:
        parser.error("--system-prompt goes into the chat template: add --chat-template")
    if args.no_grid and (args.methods or args.prompts_file):
        parser.error("--no-grid changes nothing here: the grid belongs to the toy world's own table")
    args.methods = list(dict.fromkeys(args.methods or ()))
    try:
        for spec in args.methods:
            if "early" in _needs(spec) and args.expert:
                parser.error(f"{spec}: only the embedded expert has an early checkpoint; give yours as --amateur")
    except ValueError as error:
        parser.error(str(error))
    args.batch = args.batch or (BATCH_OF_OTHERS if args.expert else BATCH)
    if args.prompts_file:
        args.max_new_tokens = args.max_new_tokens or 64
    else:
        args.n = args.n or 500


def _tasks(args: argparse.Namespace, pair: Pair) -> Tasks:
    if not args.prompts_file:
        return toy_tasks(list(dict.fromkeys(args.tasks or TASKS)), args.n, args.seed)

    def render(prompt: str) -> str:
        return pair.prompt(prompt, system=args.system_prompt, chat=args.chat_template)

    return read_questions(args.prompts_file, n=args.n, max_new_tokens=args.max_new_tokens, render=render)


def _records(args: argparse.Namespace, pair: Pair, tasks: Tasks) -> Records:
    """Where the answers go; a folder is bound to everything that an answer depends on, and to nothing else."""
    if args.out is None:
        return Records()
    settings = {"expert": fingerprint(pair.expert), "amateur": fingerprint(pair.amateur)}
    settings |= {"device": pair.expert.device.type, "seed": args.seed, "batch": args.batch, "stop": args.stop}
    settings |= {"max-new-tokens": args.max_new_tokens, "n": args.n, "prompts": "the toy world's"}
    if args.prompts_file:
        prompts = [(item.prompt, str(item.gold)) for _, items in tasks.values() for item in items]
        settings["prompts"] = hashlib.sha256(json.dumps(prompts).encode()).hexdigest()[:12]
    return RunFolder(args.out, settings)


def _write(args: argparse.Namespace, rows: list[dict], headlines: dict[str, str], seconds: float) -> None:
    for path in (args.csv, args.out and args.out / "results.csv"):
        if path:
            write_csv(rows, path)
    if args.figures:
        write_figures(rows, headlines, args.figures)
    if args.json:
        setup = {"seed": args.seed, "n": args.n, "seconds": round(seconds), "torch": torch.__version__}
        setup |= {"machine": platform.machine(), "threads": torch.get_num_threads()}
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({"setup": setup, "rows": rows}, indent=1) + "\n")
