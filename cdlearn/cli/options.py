"""What the sub-commands share: checked flags, the pair they name, a method as a source, text for terminals."""

from __future__ import annotations

import argparse
import difflib
import sys
import unicodedata
from pathlib import Path
from typing import Any, NoReturn

from cdlearn.loops.generate import generate
from cdlearn.loops.speculate import speculate
from cdlearn.pairs.loading import where
from cdlearn.pairs.pair import Pair, load_expert, load_pair
from cdlearn.sources import CachedLM, Contrast, DoLa, Source

METHODS = ("contrastive", "greedy", "amateur", "sample", "dola", "speculative", "speculative-contrastive")
NEEDS_AMATEUR = ("contrastive", "amateur", "speculative", "speculative-contrastive")
CONTRASTS = ("contrastive", "speculative-contrastive")
# the flags that change nothing for the methods that are not named here
FLAGS_OF = {
    "alpha": (*CONTRASTS, "dola"),
    "strength": CONTRASTS,
    "beta": CONTRASTS,
    "tau_amateur": CONTRASTS,
    "temperature": tuple(method for method in METHODS if method != "greedy"),
    "top_k": (*CONTRASTS, "sample"),
    "top_p": tuple(method for method in METHODS if method != "greedy"),
    "gamma": ("speculative", "speculative-contrastive"),
}


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line and a guess at what was meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in message.split("unrecognized arguments: ")[-1].split() if "unrecognized" in message else ():
            close = difflib.get_close_matches(word, known, n=1, cutoff=0.75)
            if close:
                message += f" (did you mean {close[0]}?)"
                break
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help shows what there is\n")


def number(kind: type, low: float, high: float | None = None, *, above: bool = False):
    """An argparse type: a number from `low` (or above it) to `high`."""
    bound = f"{'more than' if above else 'at least'} {low:g}" + (f" and at most {high:g}" if high is not None else "")

    def parse(text: str):
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number; give {bound}") from None
        if not (value > low if above else value >= low) or (high is not None and value > high) or value == float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is out of range; give {bound}")
        return value

    return parse


def add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models")
    group.add_argument("--expert", metavar="MODEL", help="hub id or local folder (default: the embedded expert)")
    group.add_argument(
        "--amateur", metavar="MODEL", help='hub id, local folder, or "early" (default: the embedded amateur)'
    )
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument("--dtype", default="auto", help="auto, float32, bfloat16, float16 (default: auto)")


def add_contrast(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("the contrast")
    group.add_argument(
        "--alpha", type=number(float, 0, 1, above=True), help="keep tokens with p >= alpha * max p (default: 0.1)"
    )
    form = group.add_mutually_exclusive_group()
    form.add_argument(
        "--beta", type=number(float, 0), help="2023 form: (1 + beta) * expert - beta * amateur logits (default: 0.5)"
    )
    form.add_argument(
        "--strength", type=number(float, 0), help="2022 form: log p expert - strength * log p amateur (1: the paper)"
    )
    group.add_argument("--top-k", type=number(int, 0), help="prune the expert's candidates to the k best (0: off)")
    group.add_argument(
        "--tau-amateur", type=number(float, 0, above=True), help="amateur temperature of the 2022 form (default: 1)"
    )


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", type=number(int, 1), default=64, help="default: 64")
    group.add_argument(
        "--seed", type=number(int, 0), default=0, help="prompt number r draws with seed + r (default: 0)"
    )
    group.add_argument("--system-prompt", metavar="TEXT", help="goes into the chat template")
    group.add_argument("--no-chat-template", action="store_true", help="give the prompt to the models as it is")


def check_flags(parser: argparse.ArgumentParser, args: argparse.Namespace) -> None:
    """Refuse flags that would change nothing: a silent flag is a wrong experiment."""
    if args.system_prompt and args.no_chat_template:
        parser.error("--system-prompt goes into the chat template: leave out --no-chat-template")
    method = getattr(args, "method", "contrastive")
    for flag, methods in FLAGS_OF.items():
        if getattr(args, flag, None) is not None and method not in methods:
            name = "--" + flag.replace("_", "-")
            parser.error(f"{name} changes nothing with --method {method}; it belongs to {', '.join(methods)}")
    if args.beta is not None and args.tau_amateur is not None:
        parser.error("--tau-amateur belongs to the 2022 form: give --strength instead of --beta")


def open_pair(args: argparse.Namespace, methods: tuple[str, ...] = ("contrastive",)) -> Pair:
    """Load what the flags name: one model is enough where no method needs an amateur."""
    options = {"device": args.device, "dtype": args.dtype}
    if args.amateur is None and not set(methods) & set(NEEDS_AMATEUR):
        return load_expert(args.expert, **options)
    if args.amateur is None and args.expert is not None:
        where("--expert", args.expert)
        raise ValueError(
            f"--expert {args.expert} needs an amateur: add --amateur MODEL, a smaller one of the family, or choose "
            "a method that works with one model: greedy, sample, dola."
        )
    return load_pair(args.expert, args.amateur, **options)


def source_of(method: str, pair: Pair, args: argparse.Namespace) -> tuple[Source, Source | None, dict[str, Any]]:
    """Return the source of a method, its draft if it has one, and what it adds to the arguments of the loop."""
    alpha = 0.1 if args.alpha is None else args.alpha
    top_p, temperature = getattr(args, "top_p", None), getattr(args, "temperature", None)
    draw = {"temperature": temperature or 0.0, "top_p": 1.0 if top_p is None else top_p}
    if method in CONTRASTS:
        form: dict[str, Any] = {"beta": 0.5 if args.beta is None else args.beta}
        if args.strength is not None or args.tau_amateur is not None:
            form = {"strength": 1.0 if args.strength is None else args.strength}
            form["amateur_temperature"] = 1.0 if args.tau_amateur is None else args.tau_amateur
        amateur = CachedLM(pair.amateur)  # one source: the draft and the contrast share what it computed
        source = Contrast(pair.expert, amateur, alpha=alpha, top_k=args.top_k or 0, **form)
        return source, amateur if method == "speculative-contrastive" else None, draw
    if method == "speculative":
        return CachedLM(pair.expert), CachedLM(pair.amateur), draw
    if method == "dola":
        return DoLa(pair.expert, alpha=alpha), None, draw
    if method == "amateur":
        return CachedLM(pair.amateur), None, draw
    if method == "sample":
        draw |= {"temperature": 1.0 if temperature is None else temperature, "top_k": args.top_k or 0}
        return CachedLM(pair.expert), None, draw
    return CachedLM(pair.expert), None, {}


def run_method(method: str, pair: Pair, prompts: list[str], args: argparse.Namespace, **options: Any) -> tuple:
    """Decode the prompts with one method; returns one `Generation` each, and the settings of the source."""
    source, draft, draw = source_of(method, pair, args)
    chat = not args.no_chat_template
    rendered = [pair.prompt(text, system=args.system_prompt, chat=chat) for text in prompts]
    settings = dict(tokenizer=pair.tokenizer, max_new_tokens=args.max_new_tokens, seed=args.seed, trace=False)
    if draft is None:
        return generate(source, rendered, **settings, **draw, **options), source.settings | draw
    draw["gamma"] = getattr(args, "gamma", None) or 4
    return speculate(source, draft, rendered, **settings, **draw, **options), source.settings | draw


def read_lines(
    path: str | Path, form: str = 'one prompt a line, or JSON lines like {"prompt": "2 + 2 ="}'
) -> list[str]:
    """The lines of a prompts file; `form` is what a message says they look like."""
    try:
        return Path(path).read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"--prompts-file {path} is not UTF-8 text ({error.reason} at byte {error.start}).") from error
    except FileNotFoundError as error:
        raise FileNotFoundError(f"--prompts-file {path}: there is no such file. It holds {form}.") from error


def clean(text: str) -> str:
    """Text safe for a terminal: control characters other than newline and tab are shown as codes."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else f"\\x{ord(c):02x}" for c in text)


def use_utf8() -> None:
    """Speak UTF-8 whatever the locale says: models do."""
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)
