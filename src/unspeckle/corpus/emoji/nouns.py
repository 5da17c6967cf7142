"""The nouns of the emoji scenes: their glyphs, their words, and where a face wears its accessories."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache

from unspeckle.corpus.emoji.glyphs import GLYPHS_BY_CATEGORY
from unspeckle.corpus.english import pluralize


@dataclass(frozen=True)
class Face:
    """Positions in a front-facing face, as fractions of its trimmed box (0 is left or top, 1 right or bottom)."""

    eye_y: float
    """Height of the eyes."""
    eye_offset_x: float
    """Distance from the center line to an eye."""
    hat_y: float
    """Height of a hat's lower edge."""
    seam_y: float | None = None
    """Height between eyes and mouth at which hybrids are cut; None if the noun takes no part in hybrids."""
    bow_x: float = 0.78
    """Position of a bow from the left."""


@dataclass(frozen=True)
class Noun:
    """A thing that scenes are made of."""

    name: str
    glyph: str
    category: str
    synonyms: tuple[str, ...] = ()
    """Other words for it that captions use."""
    plural: str = ""
    """The plural of its name, or empty if `pluralize` gives it."""
    face: Face | None = None
    """Set if the glyph is a front-facing face, which can wear things."""


ANIMAL, PLANT, FOOD, VEHICLE, PLACE, THING = "animal", "plant", "food", "vehicle", "place", "thing"

CURATED_NOUNS: tuple[Noun, ...] = (
    Noun("frog", "🐸", ANIMAL, ("froggy",), face=Face(0.24, 0.25, 0.22, 0.45, 0.74)),
    Noun("rabbit", "🐰", ANIMAL, ("bunny", "bunny rabbit"), face=Face(0.60, 0.18, 0.52, 0.70, 0.82)),
    Noun("panda", "🐼", ANIMAL, ("panda bear",), face=Face(0.46, 0.18, 0.16, 0.60)),
    Noun("cat", "🐱", ANIMAL, ("kitty", "kitten"), plural="cats", face=Face(0.55, 0.20, 0.34, 0.64)),
    Noun("dog", "🐶", ANIMAL, ("puppy", "doggy"), face=Face(0.51, 0.17, 0.14, 0.62)),
    Noun("bear", "🐻", ANIMAL, face=Face(0.46, 0.18, 0.22, 0.55)),
    Noun("fox", "🦊", ANIMAL, plural="foxes", face=Face(0.58, 0.17, 0.36, 0.66)),
    Noun("koala", "🐨", ANIMAL, face=Face(0.50, 0.17, 0.20, 0.58)),
    Noun("lion", "🦁", ANIMAL, face=Face(0.38, 0.14, 0.20, 0.48)),
    Noun("tiger", "🐯", ANIMAL, face=Face(0.31, 0.18, 0.14, 0.42)),
    Noun("monkey", "🐵", ANIMAL, face=Face(0.45, 0.13, 0.14, 0.56)),
    Noun("mouse", "🐭", ANIMAL, plural="mice", face=Face(0.61, 0.15, 0.38, 0.70)),
    Noun("hamster", "🐹", ANIMAL, face=Face(0.53, 0.19, 0.18, 0.65)),
    Noun("pig", "🐷", ANIMAL, ("piglet", "piggy"), face=Face(0.52, 0.22, 0.14, 0.58)),
    Noun("cow", "🐮", ANIMAL, face=Face(0.42, 0.15, 0.20, 0.55)),
    Noun("wolf", "🐺", ANIMAL, plural="wolves", face=Face(0.47, 0.18, 0.26, 0.58)),
    Noun("raccoon", "🦝", ANIMAL, face=Face(0.50, 0.15, 0.18, 0.62)),
    Noun("chick", "🐥", ANIMAL, ("baby chick",), face=Face(0.26, 0.16, 0.10, None, 0.66)),
    Noun("owl", "🦉", ANIMAL, face=Face(0.31, 0.17, 0.16, None, 0.75)),
    Noun("elephant", "🐘", ANIMAL),
    Noun("turtle", "🐢", ANIMAL, ("tortoise",)),
    Noun("octopus", "🐙", ANIMAL, plural="octopuses"),
    Noun("crab", "🦀", ANIMAL),
    Noun("fish", "🐟", ANIMAL, plural="fish"),
    Noun("whale", "🐳", ANIMAL),
    Noun("penguin", "🐧", ANIMAL),
    Noun("duck", "🦆", ANIMAL),
    Noun("butterfly", "🦋", ANIMAL, plural="butterflies"),
    Noun("bee", "🐝", ANIMAL, ("honeybee", "bumblebee")),
    Noun("ladybug", "🐞", ANIMAL, ("ladybird",)),
    Noun("snail", "🐌", ANIMAL),
    Noun("spider", "🕷", ANIMAL),
    Noun("snake", "🐍", ANIMAL, ("serpent",)),
    Noun("unicorn", "🦄", ANIMAL),
    Noun("cactus", "🌵", PLANT, plural="cacti"),
    Noun("tree", "🌳", PLANT),
    Noun("fir tree", "🌲", PLANT, ("pine tree", "evergreen")),
    Noun("sunflower", "🌻", PLANT),
    Noun("rose", "🌹", PLANT),
    Noun("tulip", "🌷", PLANT),
    Noun("mushroom", "🍄", PLANT, ("toadstool",)),
    Noun("apple", "🍎", FOOD),
    Noun("banana", "🍌", FOOD),
    Noun("strawberry", "🍓", FOOD, plural="strawberries"),
    Noun("lemon", "🍋", FOOD),
    Noun("pear", "🍐", FOOD),
    Noun("pineapple", "🍍", FOOD),
    Noun("watermelon", "🍉", FOOD, ("slice of watermelon",), plural="watermelons"),
    Noun("carrot", "🥕", FOOD),
    Noun("eggplant", "🍆", FOOD, ("aubergine",)),
    Noun("pizza", "🍕", FOOD, ("slice of pizza",), plural="pizzas"),
    Noun("hamburger", "🍔", FOOD, ("burger", "cheeseburger")),
    Noun("doughnut", "🍩", FOOD, ("donut",)),
    Noun("cupcake", "🧁", FOOD, ("fairy cake",)),
    Noun("ice cream", "🍦", FOOD, ("ice cream cone",), plural="ice creams"),
    Noun("cookie", "🍪", FOOD, ("biscuit",)),
    Noun("car", "🚗", VEHICLE, ("automobile",)),
    Noun("bus", "🚌", VEHICLE, ("coach",), plural="buses"),
    Noun("tractor", "🚜", VEHICLE),
    Noun("airplane", "✈", VEHICLE, ("plane", "aeroplane")),
    Noun("rocket", "🚀", VEHICLE, ("spaceship", "space rocket")),
    Noun("sailboat", "⛵", VEHICLE, ("sailing boat", "sail boat")),
    Noun("bicycle", "🚲", VEHICLE, ("bike",)),
    Noun("helicopter", "🚁", VEHICLE, ("chopper",)),
    Noun("house", "🏠", PLACE, ("home",), plural="houses"),
    Noun("castle", "🏰", PLACE),
    Noun("tent", "⛺", PLACE),
    Noun("star", "⭐", PLACE),
    Noun("sun", "☀", PLACE),
    Noun("umbrella", "☂", THING, ("parasol",)),
    Noun("guitar", "🎸", THING),
    Noun("drum", "🥁", THING),
    Noun("key", "🔑", THING),
    Noun("bell", "🔔", THING),
    Noun("light bulb", "💡", THING, ("lightbulb",)),
    Noun("book", "📕", THING),
    Noun("chair", "🪑", THING),
    Noun("balloon", "🎈", THING),
    Noun("soccer ball", "⚽", THING, ("football",)),
    Noun("teddy bear", "🧸", THING, ("teddy",)),
    Noun("gift", "🎁", THING, ("present", "gift box")),
    Noun("anchor", "⚓", THING),
    Noun("backpack", "🎒", THING, ("rucksack",)),
    Noun("robot", "🤖", THING, face=Face(0.53, 0.18, 0.29, None, 0.74)),
    Noun("alien", "👽", THING, face=Face(0.52, 0.22, 0.14)),
    Noun("pumpkin", "🎃", THING, ("jack-o-lantern",), face=Face(0.53, 0.20, 0.22)),
    Noun("skull", "💀", THING, face=Face(0.50, 0.24, 0.12)),
    Noun("ghost", "👻", THING),
    Noun("snowman", "⛄", THING, plural="snowmen"),
    Noun("heart", "❤", THING),
    Noun("giraffe", "🦒", ANIMAL),
    Noun("zebra", "🦓", ANIMAL),
    Noun("horse", "🐴", ANIMAL, ("pony",)),
    Noun("sheep", "🐑", ANIMAL, ("lamb",), plural="sheep"),
    Noun("camel", "🐪", ANIMAL),
    Noun("crocodile", "🐊", ANIMAL, ("alligator",)),
    Noun("dolphin", "🐬", ANIMAL),
    Noun("shark", "🦈", ANIMAL),
    Noun("flamingo", "🦩", ANIMAL, plural="flamingos"),
    Noun("parrot", "🦜", ANIMAL),
    Noun("dinosaur", "🦕", ANIMAL, ("dino",)),
    Noun("lobster", "🦞", ANIMAL),
    Noun("palm tree", "🌴", PLANT, ("palm",)),
    Noun("tomato", "🍅", FOOD, plural="tomatoes"),
    Noun("avocado", "🥑", FOOD, plural="avocados"),
    Noun("corn", "🌽", FOOD, ("corncob", "corn on the cob"), plural="corncobs"),
    Noun("egg", "🥚", FOOD),
    Noun("bread", "🍞", FOOD, ("loaf of bread", "loaf"), plural="loaves of bread"),
    Noun("cheese", "🧀", FOOD, ("piece of cheese", "wedge of cheese"), plural="cheeses"),
    Noun("hot dog", "🌭", FOOD, ("hotdog",)),
    Noun("croissant", "🥐", FOOD),
    Noun("cake", "🎂", FOOD, ("birthday cake",)),
    Noun("truck", "🚚", VEHICLE, ("lorry", "delivery truck")),
    Noun("train", "🚂", VEHICLE, ("steam train", "locomotive")),
    Noun("motorcycle", "🏍", VEHICLE, ("motorbike",)),
    Noun("ship", "🚢", VEHICLE, ("cruise ship",)),
    Noun("moon", "🌙", PLACE, ("crescent moon",)),
    Noun("cloud", "☁", PLACE),
    Noun("rainbow", "🌈", PLACE),
    Noun("snowflake", "❄", PLACE),
    Noun("violin", "🎻", THING, ("fiddle",)),
    Noun("candle", "🕯", THING),
    Noun("basketball", "🏀", THING),
    Noun("camera", "📷", THING),
    Noun("clock", "⏰", THING, ("alarm clock",)),
    Noun("television", "📺", THING, ("tv", "television set")),
    Noun("diamond", "💎", THING, ("gem",)),
    Noun("clown", "🤡", THING, face=Face(0.42, 0.19, 0.16, None, 0.74)),
)

KEYWORDS: dict[str, str] = {
    "frog": "toad, tadpole, amphibian",
    "rabbit": "hare",
    "cat": "feline, tomcat",
    "dog": "hound, pup, poodle, beagle, canine",
    "bear": "grizzly",
    "fox": "vixen",
    "lion": "lioness",
    "tiger": "tigress, leopard, jaguar",
    "monkey": "ape, chimp, chimpanzee, gorilla",
    "mouse": "rat, rodent",
    "hamster": "gerbil",
    "pig": "hog, swine, sow, boar",
    "cow": "bull, calf, cattle, ox",
    "wolf": "werewolf, coyote",
    "chick": "chicken, hen, bird",
    "elephant": "mammoth",
    "turtle": "terrapin",
    "octopus": "squid, kraken",
    "crab": "crayfish",
    "fish": "goldfish, salmon, trout, tuna",
    "whale": "orca",
    "duck": "mallard, duckling, goose",
    "butterfly": "moth",
    "bee": "wasp, hornet",
    "ladybug": "beetle",
    "snail": "slug",
    "spider": "tarantula",
    "snake": "python, cobra, viper",
    "unicorn": "pegasus",
    "cactus": "saguaro",
    "tree": "maple, birch, bush",
    "fir tree": "spruce, conifer",
    "rose": "flower, blossom",
    "sunflower": "daisy",
    "mushroom": "fungus",
    "apple": "fruit",
    "lemon": "lime, citrus",
    "pineapple": "ananas",
    "watermelon": "melon",
    "carrot": "vegetable",
    "pizza": "pepperoni",
    "hamburger": "sandwich",
    "cupcake": "muffin",
    "cookie": "cracker",
    "car": "sedan, auto, vehicle, taxi",
    "bus": "minibus",
    "airplane": "jet, aircraft, airliner",
    "rocket": "shuttle, missile",
    "sailboat": "yacht, boat, dinghy",
    "bicycle": "cycle",
    "house": "cottage, hut, building",
    "castle": "palace, fortress",
    "tent": "camp, tipi",
    "star": "starfish",
    "sun": "sol",
    "umbrella": "brolly",
    "guitar": "ukulele",
    "drum": "snare, tambourine",
    "bell": "chime",
    "light bulb": "lamp, light",
    "book": "novel, notebook",
    "chair": "seat, stool",
    "soccer ball": "ball",
    "gift": "parcel, package",
    "backpack": "bag, schoolbag",
    "robot": "android, droid",
    "alien": "martian, extraterrestrial",
    "pumpkin": "squash, halloween",
    "skull": "skeleton, bones",
    "ghost": "phantom, spook",
    "heart": "love",
    "horse": "foal, mare, stallion, mule, donkey",
    "sheep": "ewe, ram",
    "camel": "dromedary",
    "crocodile": "caiman, reptile",
    "dolphin": "porpoise",
    "parrot": "macaw, parakeet, cockatoo",
    "dinosaur": "brontosaurus, sauropod, diplodocus",
    "lobster": "langoustine",
    "avocado": "guacamole",
    "corn": "maize, sweetcorn",
    "bread": "toast",
    "cheese": "cheddar",
    "hot dog": "sausage, frankfurter",
    "croissant": "pastry",
    "cake": "gateau, torte",
    "truck": "van",
    "train": "railway, engine",
    "motorcycle": "scooter, moped",
    "ship": "steamer, ferry, vessel",
    "moon": "half-moon",
    "snowflake": "snow",
    "violin": "viola, cello",
    "clock": "watch, timer",
    "television": "telly, screen, monitor",
    "diamond": "jewel, gemstone, crystal",
    "clown": "jester, joker",
}
"""By noun, single words of nearly the same meaning, with commas between them, that captions do not use: of the unknown
word "toad" in a prompt, the nearest known one is said to be frog."""

GARMENT_GLYPHS: dict[str, str] = {"top hat": "🎩", "crown": "👑", "sunglasses": "🕶", "bow": "🎀"}
"""What a face can wear, with its glyph."""


@cache
def all_nouns() -> tuple[Noun, ...]:
    """The curated nouns, then all other clean glyphs."""
    entries = [
        (category, *entry.split(" ", 1)) for category, text in GLYPHS_BY_CATEGORY.items() for entry in text.split(", ")
    ]
    return CURATED_NOUNS + tuple(Noun(name, glyph, category) for category, glyph, name in entries)


def plural_name(noun: Noun) -> str:
    """The plural of the noun's name."""
    return noun.plural or pluralize(noun.name)


def related_words(nouns: Iterable[str]) -> dict[str, str]:
    """By a single word that captions do not use, the noun of nearly the same meaning, such as "frog" by "toad"."""
    words = {word: noun for noun in nouns for word in KEYWORDS.get(noun, "").split(", ") if word}
    return dict(sorted(words.items()))
