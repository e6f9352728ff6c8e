"""What the sub-commands share: checked flags, the pair they name, decoding with it, text for terminals."""

from __future__ import annotations

import argparse
import os
import sys
import unicodedata
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from tqdm.auto import tqdm

from cdlearn.loops.run import Generation
from cdlearn.methods import FORM, METHODS, OPTIONS, SCORED, Decoder, Option, check, check_form, guess, parse
from cdlearn.pairs import Pair, load_expert, load_pair
from cdlearn.pairs.loading import where


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line and a guess at what was meant."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False, **settings)

    def error(self, message: str) -> NoReturn:
        known = [flag for action in self._actions for flag in action.option_strings]
        for word in message.partition("unrecognized arguments: ")[2].split():
            message += guess(word, known)
        self.exit(2, f"{self.prog}: error: {message}\n{self.prog} --help shows what there is\n")


def checked(read: Callable[[str], Any]) -> Callable[[str], Any]:
    """An argparse type of a reader that raises ValueError: its message is what the user sees."""

    def parse(text: str) -> Any:
        try:
            return read(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return parse


def method(text: str) -> str:
    """The name of a method. Raises ValueError for one that is unknown, with the nearest."""
    if len(text.split()) != 1:
        raise ValueError(f"method {text!r} is one word here: numbers have flags of their own, --beta 0.5 for instance.")
    return parse(text)[0]


def spec(text: str) -> str:
    """A method with its numbers, as it was written but for spaces. Raises ValueError for one that is unknown."""
    parse(text)
    return " ".join(text.split())


def number(kind: type, low: float) -> Callable[[str], Any]:
    """An argparse type: a number from `low` on."""
    return checked(lambda text: Option(None, "", kind, low).read("value", text))


EVERYDAY = ("alpha", "beta", "strength", "layers", "temperature", "top_p", "gamma")  # numbers that come first in --help


def flag(name: str) -> str:
    """How the command line writes a number of a method."""
    return OPTIONS[name].flag or "--" + name.replace("_", "-")


def add_models(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("models")
    group.add_argument("--expert", metavar="MODEL", help="hub id, folder or .gguf file (default: the embedded expert)")
    group.add_argument("--amateur", metavar="MODEL", help='the same, or "early" (default: the embedded amateur)')
    group.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    group.add_argument("--dtype", default="auto", help="float32, bfloat16, float16 (default: auto, the model's own)")


def add_numbers(parser: argparse.ArgumentParser, *, scored: bool = False) -> None:
    """A flag for each number of methods (scored: also those of evaluations); `with_numbers` reads them back."""
    everyday = parser.add_argument_group("numbers, for the methods that take them")
    rare = parser.add_argument_group("more numbers")
    for name, option in OPTIONS.items():
        if name in SCORED and not scored:
            continue
        group, metavar = everyday if name in EVERYDAY else rare, {float: "X", int: "N", str: "WORD"}[option.kind]
        defaults = {"": option.default} | {f" with {key}": method.defaults.get(name) for key, method in METHODS.items()}
        known = [f"{v if isinstance(v, str) else f'{v:g}'}{where}" for where, v in defaults.items() if v is not None]
        read = checked(lambda text, name=name: OPTIONS[name].read(name, text))
        about = f"{option.about} (default: {'; '.join(known)})"
        group.add_argument(flag(name), dest=name, type=read, metavar=metavar, help=about)


def add_generation(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("generation")
    group.add_argument("--max-new-tokens", metavar="N", type=number(int, 1), default=64, help="default: 64")
    group.add_argument(
        "--seed", metavar="N", type=number(int, 0), default=0, help="prompt r draws with seed + r (default: 0)"
    )
    group.add_argument("--system-prompt", metavar="TEXT", help="goes into the chat template")
    group.add_argument("--no-chat-template", action="store_true", help="give the prompt to the models as it is")


def methods_help() -> str:
    """What every method is, and the numbers it takes."""
    return "\n".join(f"  {name:24}{m.about}\n{'':26}{' '.join(m.options)}" for name, m in METHODS.items())


def with_numbers(parser: argparse.ArgumentParser, args: argparse.Namespace, specs: Sequence[str]) -> list[str]:
    """These methods with the numbers of the flags that each takes and does not say; a usage error for unused flags."""
    if args.system_prompt and getattr(args, "no_chat_template", False):
        parser.error("--system-prompt goes into the chat template: leave out --no-chat-template")
    parsed = [parse(spec) for spec in specs]
    flags = {name: getattr(args, name) for name in OPTIONS if getattr(args, name, None) is not None}

    def spell(name: str, value: Any) -> str:
        return f"{flag(name)} {value}"

    try:
        for key, value in flags.items():
            takers = [name for name, _ in parsed if key in METHODS[name].options]
            check([*takers, parsed[0][0]][0], {key: value}, spell)
        check_form(flags, spell)
    except ValueError as error:
        parser.error(str(error))
    made, left = [], set(flags)
    for spec, (name, own) in zip(specs, parsed):
        other = FORM[1:] if "beta" in own else FORM[:1] if own.keys() & set(FORM) else ()
        taken = [key for key in flags if key in METHODS[name].options and key not in (*own, *other)]
        made.append(" ".join([spec, *(f"{key}={flags[key]}".replace(" ", "") for key in taken)]))
        left -= set(taken)
    for key in left:
        parser.error(f"{spell(key, flags[key])} changes nothing: every method that takes it has its own numbers")
    return made


def open_pair(args: argparse.Namespace, methods: Sequence[str] = ("contrastive",)) -> Pair:
    """Load what the flags name: one model is enough where no method needs an amateur."""
    options = {"device": args.device, "dtype": args.dtype}
    needs = {need for method in methods for need in METHODS[method].needs}
    if args.expert and "early" in needs:
        raise ValueError(f"--expert {args.expert} has no early checkpoint here: name one as --amateur of contrastive.")
    if args.amateur is None and "amateur" not in needs:
        return load_expert(args.expert, **options)
    if args.expert and args.amateur is None:
        where("--expert", args.expert)
        alone = [name for name, method in METHODS.items() if not {"amateur", "early"} & set(method.needs)]
        advice = "add --amateur MODEL, a smaller one of the family, or choose a method that works with one model"
        raise ValueError(f"--expert {args.expert} needs an amateur: {advice}: {', '.join(alone)}.")
    return load_pair(args.expert, args.amateur, **options)


def decode(
    decoder: Decoder, pair: Pair, prompts: list[str], args: argparse.Namespace, *, skip: int = 0, stream: Any = None
) -> list[Generation]:
    """One `Generation` per prompt, as the flags of `add_generation` say. skip: how many prompts came before these."""
    chat = not args.no_chat_template
    rendered = [pair.prompt(text, system=args.system_prompt, chat=chat) for text in prompts]
    options = {"tokenizer": pair.tokenizer, "max_new_tokens": args.max_new_tokens, "seed": args.seed + skip}
    return decoder(rendered, **options, stream=stream, trace=False, progress=False)


def bar(total: int, unit: str = "text") -> tqdm:
    """A progress bar on a terminal only, and on stderr, so that redirected output stays clean."""
    return tqdm(total=total, unit=unit, disable=None, leave=False)


def clean(text: str) -> str:
    """Text safe for a terminal: control characters other than newline and tab are shown as codes."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else f"\\x{ord(c):02x}" for c in text)


def open_streams() -> bool:
    """Speak UTF-8 whatever the locale says: models do. False, and a line, where nobody can read the output."""
    sys.stdin, sys.stderr = sys.stdin or open(os.devnull), sys.stderr or open(os.devnull, "w")
    if sys.stdout is None:
        print("cdlearn: error: standard output is closed: send it to a terminal, a file or a pipe.", file=sys.stderr)
        return False
    for stream, errors in ((sys.stdin, "replace"), (sys.stdout, "backslashreplace"), (sys.stderr, "backslashreplace")):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(encoding="utf-8", errors=errors)
    return True
