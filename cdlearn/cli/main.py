"""`python -m cdlearn`: one prompt in, one continuation out; the sub-commands live in their own modules."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys

import cdlearn
from cdlearn.cli import options
from cdlearn.methods import METHODS, Models, build, guess, parse

# name -> (module, function, what it does); a module is imported when it is asked for, so that a prompt waits for none
COMMANDS = {
    "demo": ("compare", "demo", "expert, amateur and contrastive text side by side (also: no arguments on a terminal)"),
    "compare": ("compare", "main", "several prompts, several methods, as a table, markdown or JSON"),
    "bench": ("bench", "main", "speed against the bare forward passes"),
    "eval": ("evaluate", "main", "methods on tasks or on your prompts file, with intervals; can be resumed"),
    "doctor": ("doctor", "main", "check the installation, one line each"),
    "assignments": ("classroom", "assignments", "build what students get (needs the classroom extra and a clone)"),
    "grade": ("classroom", "grades", "grade a folder of submissions"),
    "check": ("classroom", "check", "your own notebook of an assignment, before you hand it in"),
}
HELP = """
commands (each has its own --help):
{commands}

methods, and the numbers they take:
{methods}

examples:
  cdlearn                                                    the demo: expert, amateur and contrast side by side
  cdlearn --prompt "Ada had a red"                           stream a contrastive continuation
  echo "Ada had a red" | cdlearn --no-stream                 the same from a pipe
  cdlearn --prompt "Tell a story." --method sample --seed 7  one sample of the expert alone
  cdlearn --prompt "Ada had a red" --strength 1 --json       the 2022 form, as JSON with token ids
  cdlearn --expert Qwen/Qwen3-4B --amateur Qwen/Qwen3-0.6B --prompt "Why is the sky blue?"
  cdlearn compare "Ada had a red" "Ben had a dog" --format markdown
"""


def build_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:11} {about}" for name, (_, _, about) in COMMANDS.items())
    parser = options.Parser(
        prog="cdlearn",
        usage="cdlearn [COMMAND] [--prompt TEXT] [--method METHOD] [options]",
        description="Contrastive decoding: an expert, an amateur, and the text their difference writes.",
        epilog=HELP.format(commands=commands, methods=options.methods_help()),
    )
    parser.add_argument("--version", action="version", version=f"cdlearn {cdlearn.__version__}")
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt (default: standard input)")
    about = f"one of {', '.join(METHODS)} (default: contrastive)"
    parser.add_argument("--method", type=options.checked(options.method), default="contrastive", help=about)
    parser.add_argument("--no-stream", action="store_true", help="print the whole text at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    options.add_models(parser)
    options.add_numbers(parser)
    options.add_generation(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 error, 2 usage, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # bytes that the locale could not decode arrive as surrogates; models want text
    argv = [arg.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for arg in argv]
    if not options.open_streams():
        return 1
    try:
        code = _run(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # the reader has seen enough; keep the interpreter from complaining at its final flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError, ImportError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"cdlearn: error: {options.clean(message)}", file=sys.stderr)
        return 1


def _run(argv: list[str]) -> int:
    if not argv and sys.stdin.isatty() and sys.stdout.isatty():
        argv = ["demo"]
    if argv and argv[0] in COMMANDS:
        module, function, _ = COMMANDS[argv[0]]
        return getattr(importlib.import_module(f"cdlearn.cli.{module}"), function)(argv[1:])
    parser = build_parser()
    if argv and not argv[0].startswith("-"):
        meant = guess(argv[0], COMMANDS) or "; a text goes after --prompt"
        parser.error(f"{argv[0]!r} is no command ({', '.join(COMMANDS)}){meant}")
    args = parser.parse_args(argv)
    (spec,) = options.with_numbers(parser, args, [args.method])
    prompt = args.prompt
    if prompt is None and not sys.stdin.isatty():
        prompt = sys.stdin.read().removesuffix("\n").removesuffix("\r")
    if not prompt:
        parser.error("no prompt: give --prompt TEXT, or pipe a text into standard input")
    pair = options.open_pair(args, [args.method])
    decoder = build(Models(pair), *parse(spec))

    streams = not (args.no_stream or args.json)
    show = options.clean if sys.stdout.isatty() else str

    def write(piece: str, row: int = 0) -> None:
        sys.stdout.write(show(piece))
        sys.stdout.flush()

    (made,) = options.decode(decoder, pair, [prompt], args, stream=write if streams else None)
    if args.json:
        record = {"prompt": prompt, "text": made.text, "token_ids": list(made.token_ids)}
        record |= {"finish_reason": made.finish_reason, "settings": decoder.settings, "models": pair.names}
        print(json.dumps(record | {"stats": made.stats}, ensure_ascii=False))
    else:
        print("" if streams else show(made.text))
    return 130 if made.finish_reason == "interrupted" else 0
