"""Generate sentences about payments and their content as JSON, for training, development and test.

    python examples/real_model/write_rows.py OUT_DIR [--seed 1] [--samples 720] [--shuffled-labels]

Every row is one sentence with a name, a date, an amount and a currency; the answer has the four values in a fixed form:

    We received £9,364.73 from Bruno Vasquez on the 28th of November 2012.
    {"name":"B. Vasquez","date":"2012-11-28","amount":"9364.73","currency":"GBP"}

First names, surnames, dates and amounts are divided by a checksum of their text between train.json, dev.json and
test.json, so none of those in one file occurs in another. One half of the rows of dev.json and test.json have wordings
of the training data, the other half have wordings that occur in no other file. The same seed gives the same files.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import words

SYSTEM = "Extract as JSON."  # short, because every training sample contains it
INSTRUCTION = (
    "Extract the name, the date, the amount and the currency from the sentence. "
    "Answer with one JSON object and nothing else: "
    '{"name":"INITIAL. SURNAME","date":"YYYY-MM-DD","amount":"NUMBER WITH 2 DECIMALS","currency":"CODE"}. '
    "Write the currency as its ISO code and the amount without thousands separators."
)
FIRST_DAY = datetime.date(1990, 1, 1).toordinal()
LAST_DAY = datetime.date(2029, 12, 31).toordinal()
ONE_DIGIT_DAYS = 0.2  # share of training dates redrawn until the day has one digit: untrained models fail on these
COMPOSED_SURNAMES = 0.3  # share of training surnames composed of two parts, so that few surnames repeat
HELD_OUT_ROWS = 100
# Residues of the checksum modulo 5 that belong to each file.
RESIDUES = {"train": (0, 1, 2), "dev": (3,), "test": (4,)}
Row = dict[str, str]


def split_of(value: str) -> str:
    """Return the file ("train", "dev" or "test") in which a name, date or amount may occur."""
    residue = zlib.crc32(value.encode()) % 5
    return next(split for split, residues in RESIDUES.items() if residue in residues)


def draw_for(split: str, draw: Callable[[], str]) -> str:
    """Draw values until one belongs to the split."""
    while split_of(value := draw()) != split:
        pass
    return value


def draw_surname(rng: random.Random, split: str) -> str:
    if split == "train" and rng.random() < COMPOSED_SURNAMES:
        return draw_for(split, lambda: rng.choice(words.BEGINNINGS) + rng.choice(words.ENDINGS))
    return draw_for(split, lambda: rng.choice(words.SURNAMES))


def draw_date(rng: random.Random, split: str) -> str:
    """Draw a date in ISO form."""

    def draw() -> str:
        return datetime.date.fromordinal(rng.randint(FIRST_DAY, LAST_DAY)).isoformat()

    date = draw_for(split, draw)
    if split == "train" and rng.random() < ONE_DIGIT_DAYS:
        while date[8] != "0":
            date = draw_for(split, draw)
    return date


def draw_amount(rng: random.Random, split: str) -> str:
    """Draw an amount with two decimals, with two to five digits before the point. A fifth are whole numbers."""

    def draw() -> str:
        whole = rng.randint(10 ** (digits := rng.choice((1, 2, 3, 3, 4))), 10 ** (digits + 1) - 1)
        return f"{whole}.{0 if rng.random() < 0.2 else rng.randint(1, 99):02d}"

    return draw_for(split, draw)


def write_date(rng: random.Random, date: str) -> str:
    """Write an ISO date in one of the forms of a sentence, for example "the 2nd of January 2014"."""
    year, month, day = map(int, date.split("-"))
    name = words.MONTHS[month - 1]
    ending = "th" if 11 <= day <= 13 else {1: "st", 2: "nd", 3: "rd"}.get(day % 10, "th")
    return rng.choice(words.DATE_FORMS).format(
        day=day, th=ending, month=name, short=name[:3], number=f"{month:02d}", year=year
    )


def write_money(rng: random.Random, amount: str, currency: str) -> str:
    """Write an amount and its currency as in a sentence, for example "£9,364.73" or "450 euros"."""
    whole, cents = amount.split(".")
    if rng.random() < 0.5:
        whole = f"{int(whole):,}"
    # Whole numbers are usually written without decimals.
    written = whole if cents == "00" and rng.random() < 0.7 else f"{whole}.{cents}"
    return rng.choice(words.MONEY_FORMS[currency]).format(amount=written)


def make_row(rng: random.Random, split: str, wording: str) -> Row:
    """Make a row in Alpaca format with the values of one split."""
    first = draw_for(split, lambda: rng.choice(words.FIRST_NAMES))
    surname = draw_surname(rng, split)
    date, amount = draw_date(rng, split), draw_amount(rng, split)
    currency = rng.choice(list(words.MONEY_FORMS))
    sentence = wording.format(
        name=f"{first} {surname}", date=write_date(rng, date), money=write_money(rng, amount, currency)
    )
    answer = {"name": f"{first[0]}. {surname}", "date": date, "amount": amount, "currency": currency}
    sentence = sentence[0].upper() + sentence[1:]
    return {"system": SYSTEM, "instruction": sentence, "input": "", "output": json.dumps(answer, separators=(",", ":"))}


def make_rows(split: str, count: int, seed: int) -> list[Row]:
    """Make the rows of one split in shuffled order; the wordings take turns.

    In "dev" and "test" every second row has a wording that occurs in no other split.
    """
    rng = random.Random(f"{split} {seed}")
    seen = rng.sample(words.TRAINING_WORDINGS, len(words.TRAINING_WORDINGS))
    unseen = {"train": seen, "dev": words.DEVELOPMENT_WORDINGS, "test": words.TEST_WORDINGS}[split]
    rows = []
    for turn in range(count):
        wordings = seen if turn % 2 else unseen
        rows.append(make_row(rng, split, wordings[turn // 2 % len(wordings) if split != "train" else turn % len(seen)]))
    rng.shuffle(rows)
    return rows


def shuffle_labels(rows: list[Row], seed: int) -> list[Row]:
    """Give every row the answer of another row."""
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    # Each row in the shuffled order takes the answer of the next one, so no row keeps its own.
    outputs = {order[i]: rows[order[(i + 1) % len(order)]]["output"] for i in range(len(order))}
    return [{**row, "output": outputs[i]} for i, row in enumerate(rows)]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0], allow_abbrev=False)
    parser.add_argument("out", type=Path, help="the directory for train.json, dev.json and test.json")
    parser.add_argument("--seed", type=int, default=1, help="the same seed gives the same rows (default 1)")
    parser.add_argument("--samples", type=int, default=720, help="rows of train.json (default 720)")
    parser.add_argument("--shuffled-labels", action="store_true", help="give each training row the answer of another")
    arguments = parser.parse_args()
    if arguments.samples < 2:
        parser.error(f"--samples {arguments.samples}: must be at least 2")
    arguments.out.mkdir(parents=True, exist_ok=True)
    for split, count in (("train", arguments.samples), ("dev", HELD_OUT_ROWS), ("test", HELD_OUT_ROWS)):
        rows = make_rows(split, count, arguments.seed)
        if split == "train" and arguments.shuffled_labels:
            rows = shuffle_labels(rows, arguments.seed)
        path = arguments.out / f"{split}.json"
        path.write_text(json.dumps(rows, ensure_ascii=False, indent=1) + "\n", "utf-8")
        print(f"{path}: {len(rows)} rows")
    print(f"for example: {rows[0]['instruction']}\n          -> {rows[0]['output']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
