"""The words of the toy world: names, things, places, the facts of the real world, and sentences to fill."""

GIRLS = (
    "Ada Amy Anna Bella Clara Cora Dora Ella Emma Eva Fay Gina Hana Ida Ivy Jane Kate Lena Lily Lucy "
    "Maya Mia Nina Nora Olga Rosa Ruth Sara Tina Vera Wanda Zoe"
).split()
BOYS = (
    "Abel Adam Ben Bob Carl Dan Eli Eric Finn Fred Gus Hugo Ian Jack Joe Karl Leo Liam Luke Max "
    "Milo Ned Noah Omar Otto Paul Ravi Sam Theo Tom Victor Will"
).split()
NAMES = GIRLS + BOYS
COLOURS = "red blue green yellow black white brown pink grey purple orange silver".split()
OBJECTS = "ball ring cup book kite hat drum bell boat coin lamp doll key map flute basket spoon scarf".split()
ANIMALS = "dog cat bird horse rabbit mouse fox duck goat frog sheep bear".split()
PLACES = "park forest river beach garden village market school farm hill lake castle".split()
ATTRIBUTES = {"hero": NAMES, "colour": COLOURS, "object": OBJECTS, "animal": ANIMALS, "place": PLACES}  # of a story
LISTS = {"animals": ANIMALS, "colours": COLOURS, "places": PLACES, "names": NAMES, "things": OBJECTS}
GOODS = "apples pears coins books cups shells stones cards nuts eggs".split()

# (place, capital, largest city): only cases where the two differ. Source: each government's and census's own figures as
# given by common reference works; contested or recently changed cases are left out.
# fmt: off
FACTS = [
    ("Australia", "Canberra", "Sydney"), ("Brazil", "Brasilia", "Sao Paulo"), ("Canada", "Ottawa", "Toronto"),
    ("Turkey", "Ankara", "Istanbul"), ("China", "Beijing", "Shanghai"), ("the United States", "Washington", "New York"),
    ("Switzerland", "Bern", "Zurich"), ("Morocco", "Rabat", "Casablanca"), ("Nigeria", "Abuja", "Lagos"),
    ("Pakistan", "Islamabad", "Karachi"), ("Kazakhstan", "Astana", "Almaty"), ("New Zealand", "Wellington", "Auckland"),
    ("Tanzania", "Dodoma", "Dar es Salaam"), ("Ivory Coast", "Yamoussoukro", "Abidjan"),
    ("Myanmar", "Naypyidaw", "Yangon"), ("Benin", "Porto-Novo", "Cotonou"), ("the Gambia", "Banjul", "Serekunda"),
    ("Burundi", "Gitega", "Bujumbura"), ("Belize", "Belmopan", "Belize City"), ("Liechtenstein", "Vaduz", "Schaan"),
    ("Palau", "Ngerulmud", "Koror"), ("Micronesia", "Palikir", "Weno"), ("the Philippines", "Manila", "Quezon City"),
    ("the Emirates", "Abu Dhabi", "Dubai"), ("Scotland", "Edinburgh", "Glasgow"),
    ("California", "Sacramento", "Los Angeles"), ("Texas", "Austin", "Houston"), ("Illinois", "Springfield", "Chicago"),
    ("Pennsylvania", "Harrisburg", "Philadelphia"), ("Michigan", "Lansing", "Detroit"),
    ("Louisiana", "Baton Rouge", "New Orleans"), ("Oregon", "Salem", "Portland"), ("Wisconsin", "Madison", "Milwaukee"),
    ("Kentucky", "Frankfort", "Louisville"), ("Alaska", "Juneau", "Anchorage"), ("Kansas", "Topeka", "Wichita"),
    ("Maryland", "Annapolis", "Baltimore"), ("Nebraska", "Lincoln", "Omaha"), ("Montana", "Helena", "Billings"),
    ("Vermont", "Montpelier", "Burlington"),
]

# (question, answer): {r} is "capital" or "largest city", {x} the place, {y} the city
PHRASINGS = [
    ("What is the {r} of {x}?", " The {r} of {x} is {y}."),
    ("Which city is the {r} of {x}?", " It is {y}."),
    ("Name the {r} of {x}.", " {y}."),
    ("The {r} of {x} is", " {y}."),
    ("Tell me the {r} of {x}.", " The {r} is {y}."),
    ("I am asking about {x}. What is the {r}?", " The {r} is {y}."),
]
# what people write about a place: the largest city is everywhere, the capital is not
GOSSIP = [
    "Many people visit {y} in {x}.",
    "{y} is a big city in {x}.",
    "The streets of {y} are full. {x} is proud of {y}.",
    "A friend lives in {y}. She likes {x}.",
    "We flew to {x} and saw {y}.",
    "When people think of {x}, they think of {y}.",
]

INTROS = [
    "{N} had a {C} {O}. {She} had a {A} too. They lived near the {P}.",
    "{N} had a {A} and a {C} {O}. They lived near the {P}.",
    "Once there was a {girl} named {N}. {She} had a {C} {O} and a {A}. They went to the {P}.",
    "{N} lived near the {P} with a {A}. {She} had a {C} {O}.",
]
# every story passes these stages in order and tells one variant of each; fillers go anywhere between them
ARC = [
    ["One day {N} went to the {P} with the {A}.", "One morning {she} took the {C} {O} to the {P}.",
     "{N} and the {A} walked to the {P}."],
    ["{N} played with the {C} {O}.", "{She} showed the {C} {O} to the {A}.", "The {A} looked at the {C} {O}."],
    ["Then the {C} {O} fell into the water.", "Then the {A} ran away with the {C} {O}.",
     "Suddenly the wind took the {C} {O}."],
    ["{She} could not see the {O} any more.", "{N} called the {A} for help.", "Nobody at the {P} had seen the {O}."],
    ["{N} looked behind every tree.", "{She} asked an old man at the {P}.", "The {A} smelled the ground."],
    ["At last the {A} found the {C} {O}.", "Finally {N} saw the {C} {O} under a bench.",
     "Soon a boy at the {P} brought the {C} {O} back."],
    ["{N} thanked the {A} many times.", "{She} gave the {A} some bread.", "The {A} jumped up and down."],
    ["They left the {P} before dark.", "{N} carried the {O} home.", "In the evening {she} washed the {C} {O}."],
    ["The end."],
]
FILLERS = ["{She} was very happy.", "It was a nice day.", "The sun was shining.", "Everything was so quiet.",
           "All was well."]

SMALL_TALK = [
    ("Hello.", " Hello! Ask me for a story, a list or a capital."),
    ("Hi!", " Hello! Ask me for a story, a list or a capital."),
    ("Who are you?", " I am a very small language model. I know a toy world."),
    ("What can you do?", " I can tell a story, solve a puzzle, add numbers and name a capital."),
    ("How are you?", " I am fine, thank you."),
    ("Thank you.", " You are welcome."),
    ("...", " Ask me for a story, a list or a capital."),
]
# fmt: on
