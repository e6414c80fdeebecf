"""Word lists for the demo tasks: short enough for a small model to learn, long enough for many combinations."""

from __future__ import annotations


def split_words(text: str) -> list[str]:
    """Split a text at spaces."""
    return text.split()


FIRST_NAMES = split_words(
    "Ada Ben Carla Deng Elif Farah Gita Hugo Ines Jonas Kaia Liang Mara Nils Olga Pavel Qiu Rosa Sami "
    "Tara Ugo Vera Wei Xenia Yusuf Zoe"
)
LAST_NAMES = split_words(
    "Adler Brook Castel Dorn Elm Falk Grove Hale Iver Jost Kern Lund Moor Nash Olsen Pike Reed Stern Thorn Vale"
)
CITIES = split_words(
    "Arlen Borvik Castria Delmar Estby Fenwick Galdor Halsted Ilmen Jarrow Kestrel Lorne Marisk Norvale Ostra Perrin"
)
COLOURS = split_words("red blue green yellow white black brown purple orange grey")
ANIMALS = split_words("cat dog horse fox owl otter goat rabbit heron badger mouse sparrow turtle wolf")
FRUITS = split_words("apple pear plum cherry lemon grape melon fig peach banana")
TOOLS = split_words("hammer saw drill wrench ladder brush rake shovel lamp rope")
FOODS = split_words("flour sugar butter milk rice oats honey salt yeast cocoa")
PLACES = split_words("garden market harbour library station bridge meadow kitchen school museum")
ADJECTIVES = split_words("small large quiet bright old young heavy gentle quick slow tall narrow warm cold")
NOUNS = ANIMALS + FRUITS + TOOLS + PLACES
CATEGORIES = {"animal": ANIMALS, "fruit": FRUITS, "tool": TOOLS, "colour": COLOURS, "place": PLACES}

# infinitive, third person, past, past participle
VERBS = (
    ("paint", "paints", "painted", "painted"),
    ("carry", "carries", "carried", "carried"),
    ("find", "finds", "found", "found"),
    ("clean", "cleans", "cleaned", "cleaned"),
    ("buy", "buys", "bought", "bought"),
    ("draw", "draws", "drew", "drawn"),
    ("lift", "lifts", "lifted", "lifted"),
    ("hide", "hides", "hid", "hidden"),
    ("watch", "watches", "watched", "watched"),
    ("sell", "sells", "sold", "sold"),
    ("move", "moves", "moved", "moved"),
    ("see", "sees", "saw", "seen"),
    ("choose", "chooses", "chose", "chosen"),
    ("repair", "repairs", "repaired", "repaired"),
)
PLURALS = {
    "box": "boxes", "leaf": "leaves", "city": "cities", "child": "children", "mouse": "mice", "wolf": "wolves",
    "bus": "buses", "story": "stories", "foot": "feet", "knife": "knives", "goose": "geese", "brush": "brushes",
    "baby": "babies", "tooth": "teeth", "shelf": "shelves", "dish": "dishes", "fox": "foxes", "berry": "berries",
}  # fmt: skip
PLURALS |= {noun: noun + "s" for noun in ("lamp", "dog", "pear", "station", "garden", "hammer", "owl", "lemon", "rope")}
OPPOSITES = {
    "hot": "cold", "big": "small", "early": "late", "open": "closed", "full": "empty", "light": "dark", "loud": "quiet",
    "wet": "dry", "fast": "slow", "high": "low", "near": "far", "soft": "hard", "cheap": "expensive", "strong": "weak",
    "old": "new", "sweet": "sour", "thick": "thin", "first": "last", "left": "right", "inside": "outside",
}  # fmt: skip

# Velan, an invented language. It is translated word by word, so a small model can memorize it.
VELAN = {
    "the": "ka", "a": "un", "and": "eto", "in": "vi", "near": "onu", "cat": "miru", "dog": "baro", "fox": "telu",
    "owl": "huno", "horse": "garda", "goat": "peko", "garden": "selim", "market": "torva", "bridge": "arkan",
    "harbour": "delmo", "school": "linora", "red": "rosh", "blue": "nalu", "green": "veda", "old": "tarn",
    "young": "ipi",
    "quiet": "shula", "small": "ti", "large": "grom", "sees": "okra", "finds": "zunda", "carries": "harpo",
    "watches": "milon", "paints": "fresa", "apple": "abli", "pear": "pirra", "lamp": "lucho", "rope": "snor",
    "ladder": "stavi",
}  # fmt: skip
WEEKDAYS = split_words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday")
MONTHS = split_words("January February March April May June July August September October November December")
