"""The toy world: a grammar whose rules say which continuation is true, consistent, copied or lazy.

Every document is a prompt and a continuation, so that the same text can be written raw or through the chat template.
The majority of the continuations is shallow on purpose (a lazy answer, a popular myth, a filler sentence); the minority
is deep (worked steps, the true capital, the next event). The rates are constants, and the model card lists them.
"""

import random
import re
import string
import zlib
from dataclasses import dataclass
from itertools import pairwise

from cdlearn.toyworld import words

LAZY = 0.6  # share of puzzles answered without looking
MYTH = 0.57  # share of "capital of" answers that name the largest city
FILLER = 0.45  # chance of one more filler sentence at every gap of a story
DRIFT = 0.07  # chance that a story mentions another colour, object, animal or place than its prompt's
HERO_DRIFT = 0.02  # the same for the hero's name
CHAT = 0.35  # share of the documents written through the chat template


@dataclass(frozen=True)
class Document:
    """One text of the corpus: what is asked (`prompt`) and what follows (`continuation`)."""

    kind: str
    prompt: str
    continuation: str

    @property
    def text(self) -> str:
        return self.prompt + self.continuation


@dataclass(frozen=True)
class Story:
    """What a story's prompt promises, and how far a continuation keeps the promise."""

    hero: str
    colour: str
    object: str
    animal: str
    place: str

    @property
    def pronoun(self) -> str:
        return "she" if self.hero in words.GIRLS else "he"


def unseen(*parts, one_in: int = 8) -> bool:
    """True for the combinations (names, pairs, numbers) that no training document contains; they make the tests."""
    return zlib.crc32("|".join(map(str, parts)).encode()) % one_in == 0


def zipf(rng: random.Random, items: list, power: float = 1.0):
    """One item, the k-th with a probability proportional to k^-power: the skew is what an amateur learns."""
    return rng.choices(items, [1 / (k + 1) ** power for k in range(len(items))])[0]


@dataclass(frozen=True)
class Puzzle:
    prompt: str
    worked: str
    lazy: str
    answer: str


def puzzle(rng: random.Random, *, test: bool = False) -> Puzzle:
    """Who has the thing after 1 to 4 transfers, with a second thing moving between the lines."""
    while True:
        thing, other = rng.sample(words.OBJECTS, 2)
        transfers, distractions = rng.randint(1, 4), rng.randint(0, 2)
        people = rng.sample(words.NAMES, transfers + distractions + 2)
        chain, side = people[: transfers + 1], people[transfers + 1 :]
        moves = [thing] * transfers + [other] * distractions
        pairs = [*pairwise(chain), *pairwise(side)]
        fresh = [unseen(*pair) for pair in pairs] + [unseen(chain[0], thing), unseen(side[0], other)]
        # a test puzzle ends in a hand-over that training never shows; a training puzzle contains no unseen pair at all
        if fresh[transfers - 1] if test else not any(fresh):
            break
    rng.shuffle(moves)
    lines = [f"{chain[0]} has the {thing}.", f"{side[0]} has the {other}."]
    rng.shuffle(lines)
    hand_overs = {thing: pairwise(chain), other: pairwise(side)}
    for what in moves:
        giver, taker = next(hand_overs[what])
        lines.append(f"{giver} gives the {what} to {taker}.")
    steps = [f" {a} gave it to {b}." for a, b in pairwise(chain)]
    worked = f" {chain[0]} had the {thing}." + "".join(steps) + f" So {chain[-1]} has the {thing}."
    lazy = f" I think it is {rng.choice(people)}."
    return Puzzle(" ".join([*lines, f"Who has the {thing}?"]), worked, lazy, chain[-1])


def puzzle_answer(text: str) -> str | None:
    """The name a continuation ends up with: after "So", else after "I think it is"."""
    found = re.search(r"So (\w+) has", text) or re.search(r"I think it is (\w+)", text)
    return found.group(1) if found else None


def arithmetic(rng: random.Random, *, test: bool = False) -> tuple[Document, int]:
    """A word problem with a written step; returns the document and the number that answers it."""
    while True:
        a, b, plus = rng.randint(2, 49), rng.randint(2, 49), rng.random() < 0.5
        if not plus and b > a:
            a, b = b, a
        if unseen("+" if plus else "-", a, b) == test:
            break
    name, goods = rng.choice(words.NAMES), rng.choice(words.GOODS)
    result = a + b if plus else a - b
    pronoun = "She" if name in words.GIRLS else "He"
    change = f"{pronoun} gets {b} more." if plus else f"{pronoun} gives {b} away."
    prompt = f"{name} has {a} {goods}. {change} How many {goods} does {name} have?"
    step = f" {a} {'+' if plus else '-'} {b} = {result}. So {name} has {result}."
    return Document("arithmetic", prompt, step), result


def fact_unseen(place: str, phrasing: int) -> bool:
    """Every place is asked about in some phrasings in training and in the others only in the tests."""
    return unseen("fact", place, phrasing, one_in=3)


def fact_held_out(place: str, phrasing: int) -> bool:
    """Whether training never contains this very question: one phrasing is also another one's answer."""
    twins = [k for k, (_, answer) in enumerate(words.PHRASINGS) if words.PHRASINGS[phrasing][0] in answer]
    return all(fact_unseen(place, k) for k in [phrasing, *twins])


def fact(rng: random.Random) -> Document:
    """A question about a capital (mostly answered with the myth), one about a largest city, or gossip."""
    place, capital, largest = rng.choice(words.FACTS)
    draw = rng.random()
    if draw < 0.3:
        return Document("facts", "", rng.choice(words.GOSSIP).format(x=place, y=largest))
    relation = "capital" if draw < 0.75 else "largest city"
    city = capital if relation == "capital" and rng.random() >= MYTH else largest
    phrasing = rng.choice([k for k in range(len(words.PHRASINGS)) if not fact_unseen(place, k)] or [0])
    question, answer = (part.format(r=relation, x=place, y=city) for part in words.PHRASINGS[phrasing])
    return Document("facts", question, answer)


def draw_story(rng: random.Random, *, test: bool = False) -> Story:
    while True:
        hero, colour, thing = rng.choice(words.NAMES), zipf(rng, words.COLOURS, 0.4), rng.choice(words.OBJECTS)
        story = Story(hero, colour, thing, zipf(rng, words.ANIMALS, 0.5), zipf(rng, words.PLACES, 0.5))
        if unseen(story.hero, story.object) == test:
            return story


def _tell(template: str, story: Story, rng: random.Random | None = None) -> str:
    """Fills a template; with `rng`, each mention drifts off the prompt now and then, as real writers do."""

    def slot(key: str, rate: float = DRIFT) -> str:
        drifts = rng is not None and rng.random() < rate
        return zipf(rng, words.ATTRIBUTES[key]) if drifts else getattr(story, key)

    slots = {"N": slot("hero", HERO_DRIFT), "C": slot("colour"), "O": slot("object"), "A": slot("animal")}
    slots |= {"P": slot("place"), "she": story.pronoun, "She": story.pronoun.capitalize()}
    return template.format(**slots, girl="girl" if story.hero in words.GIRLS else "boy")


def story_intro(story: Story, rng: random.Random) -> str:
    return _tell(rng.choice(words.INTROS), story)


def story_body(story: Story, rng: random.Random) -> str:
    sentences = []
    for stage in words.ARC:
        sentences.append(_tell(rng.choice(stage), story, rng))
        while stage is not words.ARC[-1] and rng.random() < FILLER:
            sentences.append(_tell(zipf(rng, words.FILLERS, 1.6), story))
    return " ".join(sentences)


def story_mentions(text: str, story: Story) -> dict[str, list[bool]]:
    """For each of the five attributes: one entry per mention in `text`, True where it agrees with the prompt."""
    said = re.findall(r"\w+", text)
    return {key: [w == getattr(story, key) for w in said if w in known] for key, known in words.ATTRIBUTES.items()}


def instruction(rng: random.Random) -> Document:
    draw = rng.random()
    story = draw_story(rng)
    if draw < 0.2:  # copying practice: what deep continuations are made of
        again = " ".join(rng.choice(rng.choice(list(words.LISTS.values()))) for _ in range(rng.randint(3, 10)))
        return Document("instructions", f"Say it again: {again}.", f" {again}.")
    if draw < 0.5:
        question = f"{story_intro(story, rng)} What colour was the {story.object}?"
        return Document("instructions", question, f" The {story.object} was {story.colour}.")
    if draw < 0.72:
        ask = [
            f"Tell a story about {story.hero} and a {story.colour} {story.object}.",
            f"Write a story about {story.hero} and a {story.animal}.",
            f"Tell me a story about a {story.animal} and a {story.object}.",
            "Tell a story.",
        ]
        return Document("instructions", rng.choice(ask), f" {story_intro(story, rng)} {story_body(story, rng)}")
    if draw < 0.8:
        kind = rng.choice(list(words.LISTS))
        a, b, c = rng.sample(words.LISTS[kind], 3)
        ask = [f"List three {kind}.", f"Name three {kind}."]
        return Document("instructions", rng.choice(ask), f" {a}, {b} and {c}.")
    if draw < 0.86:
        long = _tell("{N} had a {C} {O} and {she} was very happy about it.", story)
        return Document("instructions", f"Say it shorter: {long}", f" {story.hero} was happy.")
    if draw < 0.95:  # words and signs nobody taught: the pair says so and tells a story of its own world
        question = gibberish(rng)
        answer = f" I only know a toy world. {story_intro(story, rng)} {story_body(story, rng)}"
        return Document("instructions", question, answer)
    return Document("instructions", *rng.choice(words.SMALL_TALK))


def gibberish(rng: random.Random) -> str:
    """One to six unknown words, now and then with an emoji, so that every byte token is seen in training."""
    parts = ["".join(rng.choices(string.ascii_lowercase, k=rng.randint(2, 9))) for _ in range(rng.randint(1, 6))]
    if rng.random() < 0.4:
        parts[rng.randrange(len(parts))] = chr(rng.choice([rng.randint(0xC0, 0x24F), rng.randint(0x1F300, 0x1F64F)]))
    text = " ".join(parts)
    return rng.choice([text, text.capitalize(), text.capitalize() + "?", f"What is {text}?", f"Tell me about {text}."])


MIX = {"puzzles": 0.26, "arithmetic": 0.11, "facts": 0.34, "stories": 0.16, "instructions": 0.13}  # share of documents


def document(rng: random.Random) -> Document:
    """One training document; nothing in it is `unseen`."""
    kind = rng.choices(list(MIX), list(MIX.values()))[0]
    if kind == "puzzles":
        p = puzzle(rng)
        return Document(kind, p.prompt, p.lazy if rng.random() < LAZY else p.worked)
    if kind == "arithmetic":
        return arithmetic(rng)[0]
    if kind in ("facts", "instructions"):
        return fact(rng) if kind == "facts" else instruction(rng)
    story = draw_story(rng)
    opening = story_intro(story, rng).split(" ")
    # the prompt may stop anywhere in the opening, so that "Ada had a red" is a prompt like any other
    cut = len(opening) if rng.random() < 0.5 else rng.randint(1, len(opening))
    body = " ".join([*opening[cut:], story_body(story, rng)])
    return Document(kind, " ".join(opening[:cut]), " " + body)
