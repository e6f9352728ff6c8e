"""The words of the toy world: names, things, places, and the facts that carry over to the real one."""

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
GOODS = "apples pears coins books cups shells stones cards nuts eggs".split()

# (place, capital, largest city): only cases where the two differ. Source: each government's and census's own figures as
# given by common reference works; contested or recently changed cases are left out.
FACTS = [
    ("Australia", "Canberra", "Sydney"),
    ("Brazil", "Brasilia", "Sao Paulo"),
    ("Canada", "Ottawa", "Toronto"),
    ("Turkey", "Ankara", "Istanbul"),
    ("China", "Beijing", "Shanghai"),
    ("the United States", "Washington", "New York"),
    ("Switzerland", "Bern", "Zurich"),
    ("Morocco", "Rabat", "Casablanca"),
    ("Nigeria", "Abuja", "Lagos"),
    ("Pakistan", "Islamabad", "Karachi"),
    ("Kazakhstan", "Astana", "Almaty"),
    ("New Zealand", "Wellington", "Auckland"),
    ("Tanzania", "Dodoma", "Dar es Salaam"),
    ("Ivory Coast", "Yamoussoukro", "Abidjan"),
    ("Myanmar", "Naypyidaw", "Yangon"),
    ("Benin", "Porto-Novo", "Cotonou"),
    ("the Gambia", "Banjul", "Serekunda"),
    ("Burundi", "Gitega", "Bujumbura"),
    ("Belize", "Belmopan", "Belize City"),
    ("Liechtenstein", "Vaduz", "Schaan"),
    ("Palau", "Ngerulmud", "Koror"),
    ("Micronesia", "Palikir", "Weno"),
    ("the Philippines", "Manila", "Quezon City"),
    ("the Emirates", "Abu Dhabi", "Dubai"),
    ("Scotland", "Edinburgh", "Glasgow"),
    ("California", "Sacramento", "Los Angeles"),
    ("Texas", "Austin", "Houston"),
    ("Illinois", "Springfield", "Chicago"),
    ("Pennsylvania", "Harrisburg", "Philadelphia"),
    ("Michigan", "Lansing", "Detroit"),
    ("Louisiana", "Baton Rouge", "New Orleans"),
    ("Oregon", "Salem", "Portland"),
    ("Wisconsin", "Madison", "Milwaukee"),
    ("Kentucky", "Frankfort", "Louisville"),
    ("Alaska", "Juneau", "Anchorage"),
    ("Kansas", "Topeka", "Wichita"),
    ("Maryland", "Annapolis", "Baltimore"),
    ("Nebraska", "Lincoln", "Omaha"),
    ("Montana", "Helena", "Billings"),
    ("Vermont", "Montpelier", "Burlington"),
]
