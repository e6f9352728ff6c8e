"""`python -m cdlearn`: one prompt in, one continuation out; the sub-commands live in their own modules."""

from __future__ import annotations

import argparse
import difflib
import json
import os
import sys

import cdlearn
from cdlearn.cli import options

COMMANDS = {
    "demo": "expert, amateur and contrastive text side by side (also: no arguments on a terminal)",
    "compare": "several prompts, several methods, as a table, markdown or JSON",
    "bench": "speed against the bare forward passes",
    "eval": "strategies on tasks or on your prompts file, with intervals; can be resumed",
    "doctor": "check the installation, one line each",
    "assignments": "build what students get (needs the classroom extra and a clone)",
    "grade": "grade a folder of submissions",
}
EXAMPLES = """
commands (each has its own --help):
{commands}

examples:
  cdlearn                                                    the demo, then your own prompts
  cdlearn --prompt "Ada had a red"                           stream a contrastive continuation
  echo "Ada had a red" | cdlearn --no-stream                 the same from a pipe
  cdlearn --prompt "Tell a story." --method sample --seed 7  one sample of the expert alone
  cdlearn --prompt "Ada had a red" --strength 1 --json       the 2022 form, as JSON with token ids
  cdlearn --prompt "Ada had a red" --method speculative-contrastive --gamma 6
  cdlearn --expert Qwen/Qwen3-4B --amateur Qwen/Qwen3-0.6B --prompt "Why is the sky blue?"
  cdlearn compare "Ada had a red" "Ben had a dog" --format markdown
"""


def build_parser() -> argparse.ArgumentParser:
    commands = "\n".join(f"  {name:11} {text}" for name, text in COMMANDS.items())
    parser = options.Parser(
        prog="cdlearn",
        usage="cdlearn [COMMAND] [--prompt TEXT] [--method METHOD] [options]",
        description="Contrastive decoding: an expert, an amateur, and the text their difference writes.",
        epilog=EXAMPLES.format(commands=commands),
    )
    parser.add_argument("--version", action="version", version=f"cdlearn {cdlearn.__version__}")
    parser.add_argument("--prompt", metavar="TEXT", help="the prompt (default: standard input)")
    parser.add_argument("--method", choices=options.METHODS, default="contrastive", help="default: contrastive")
    options.add_models(parser)
    options.add_contrast(parser)
    options.add_generation(parser)
    parser.add_argument(
        "--temperature", type=options.number(float, 0), help="0 is greedy (default: 0; 1 with --method sample)"
    )
    parser.add_argument(
        "--top-p", type=options.number(float, 0, 1, above=True), help="nucleus of sampling (default: 1)"
    )
    parser.add_argument(
        "--gamma", type=options.number(int, 1), help="tokens drafted a round by the speculative methods (default: 4)"
    )
    parser.add_argument("--no-stream", action="store_true", help="print the whole text at the end")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run the command line; returns the exit code (0 done, 1 error, 2 usage, 130 interrupted)."""
    argv = list(sys.argv[1:] if argv is None else argv)
    # bytes that the locale could not decode arrive as surrogates; models want text
    argv = [arg.encode("utf-8", "surrogateescape").decode("utf-8", "replace") for arg in argv]
    options.use_utf8()
    try:
        code = _dispatch(argv)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # the reader has seen enough; keep the interpreter from complaining at its final flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        message = " ".join(str(error).split()) or type(error).__name__
        print(f"cdlearn: error: {options.clean(message)}", file=sys.stderr)
        return 1


def _dispatch(argv: list[str]) -> int:
    if not argv and sys.stdin.isatty() and sys.stdout.isatty():
        argv = ["demo"]
    if argv and argv[0] in COMMANDS:
        # imported here: an evaluation's imports are not the price of a prompt
        if argv[0] == "demo":
            from cdlearn.cli.compare import demo as command
        elif argv[0] == "compare":
            from cdlearn.cli.compare import main as command
        elif argv[0] == "bench":
            from cdlearn.cli.bench import main as command
        elif argv[0] == "eval":
            from cdlearn.cli.evaluate import main as command
        elif argv[0] == "assignments":
            from cdlearn.cli.classroom import assignments as command
        elif argv[0] == "grade":
            from cdlearn.cli.classroom import grades as command
        else:
            from cdlearn.cli.doctor import main as command
        return command(argv[1:]) or 0
    return _continue(argv)


def _continue(argv: list[str]) -> int:
    """One prompt, one continuation."""
    parser = build_parser()
    if argv and not argv[0].startswith("-"):
        close = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        guess = f"; did you mean {close[0]}?" if close else "; a text goes after --prompt"
        parser.error(f"{argv[0]!r} is no command ({', '.join(COMMANDS)}){guess}")
    args = parser.parse_args(argv)
    options.check_flags(parser, args)
    prompt = args.prompt if args.prompt is not None else _read_prompt(parser)
    if not prompt:
        parser.error("--prompt is empty: give the text that is to be continued")
    pair = options.open_pair(args, (args.method,))

    stream = not (args.no_stream or args.json)
    terminal = sys.stdout.isatty()

    def show(piece: str, row: int = 0) -> None:
        sys.stdout.write(options.clean(piece) if terminal else piece)
        sys.stdout.flush()

    stream_to = show if stream else None
    (made,), settings = options.run_method(args.method, pair, [prompt], args, stream=stream_to, progress=False)
    if args.json:
        record = {"prompt": prompt, "text": made.text, "token_ids": list(made.token_ids)}
        record |= {"finish_reason": made.finish_reason, "settings": settings, "models": pair.names}
        print(json.dumps(record | {"stats": made.stats}, ensure_ascii=False))
    elif stream:
        print()
    else:
        print(options.clean(made.text) if terminal else made.text)
    return 130 if made.finish_reason == "interrupted" else 0


def _read_prompt(parser: argparse.ArgumentParser) -> str:
    if sys.stdin is None or sys.stdin.isatty():
        parser.error("no prompt: give --prompt TEXT, or pipe a text in")
    text = sys.stdin.read()
    if not text:
        parser.error("no prompt: standard input is empty; give --prompt TEXT, or pipe a text in")
    return text.removesuffix("\n").removesuffix("\r")
