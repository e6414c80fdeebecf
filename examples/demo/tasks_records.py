"""Families of tasks about tables, records and formats."""

from __future__ import annotations

import json
import random

from tasks import Task, ask, commas, counted, family, joined, several
from words import CITIES, COLOURS, FIRST_NAMES, FOODS, FRUITS, LAST_NAMES, MONTHS, NOUNS, PLACES, TOOLS, WEEKDAYS


def people(rng: random.Random, size: int) -> list[tuple[str, int, str]]:
    """Draw `size` rows of name, age and city; names repeat only if there are too few."""
    names = several(rng, FIRST_NAMES, size)
    return [(name, rng.randint(18, 79), rng.choice(CITIES)) for name in names]


@family
def look_up(rng: random.Random, size: int) -> Task:
    rows = people(rng, min(max(size, 2), len(FIRST_NAMES)))
    name, age, city = rng.choice(rows)
    table = "name,age,city\n" + "\n".join(f"{n},{a},{c}" for n, a, c in rows)
    if rng.random() < 0.5:
        return Task(
            ask(rng, "How old is {n}?", "Look up the age of {n}.", n=name), table, f"{name} is {age} years old."
        )
    return Task(ask(rng, "Where does {n} live?", "Find the city of {n}.", n=name), table, f"{name} lives in {city}.")


@family
def filter_table(rng: random.Random, size: int) -> Task:
    rows, limit = people(rng, min(max(size, 3), 26)), rng.randrange(30, 65, 5)
    kept = [n for n, a, _ in rows if a > limit]
    wish = ask(
        rng, "Who is older than {y}?", "List everyone above the age of {y}.", "Name the people over {y}.", y=limit
    )
    return Task(wish, "\n".join(f"{n} | {a} | {c}" for n, a, c in rows), joined(kept) if kept else "Nobody.")


@family
def to_json(rng: random.Random, size: int) -> Task:
    rows = people(rng, max(1, min(size // 2, 26)))
    text = " ".join(
        rng.choice((f"{n} is {a} and lives in {c}.", f"In {c} there is {n}, aged {a}.")) for n, a, c in rows
    )
    wish = ask(
        rng,
        "Extract name, age and city as JSON.",
        "Turn the text into JSON records.",
        "Find the people in this text and write them as JSON.",
    )
    found = [{"name": n, "age": a, "city": c} for n, a, c in rows]
    return Task(wish, text, json.dumps(found if len(found) > 1 else found[0]))


@family
def to_csv(rng: random.Random, size: int) -> Task:
    rows = people(rng, max(1, min(size, 26)))
    wish = ask(rng, "Write these records as CSV with a header.", "Convert the lines to comma-separated values.")
    lines = "\n".join(f"Name: {n}; Age: {a}; City: {c}" for n, a, c in rows)
    return Task(wish, lines, "name,age,city\n" + "\n".join(f"{n},{a},{c}" for n, a, c in rows))


@family
def to_list(rng: random.Random, size: int) -> Task:
    words = several(rng, NOUNS + FOODS, size)
    numbered = rng.random() < 0.5
    wish = ask(
        rng,
        "Make a {k} list.",
        "Write these as a {k} list.",
        "Format the words as a {k} list.",
        k="numbered" if numbered else "bulleted",
    )
    return Task(wish, commas(words), "\n".join(f"{i}. {w}" if numbered else f"- {w}" for i, w in enumerate(words, 1)))


@family
def to_table(rng: random.Random, size: int) -> Task:
    pairs = [(word, rng.randint(1, 60)) for word in several(rng, FRUITS + TOOLS, min(size, 20))]
    wish = ask(rng, "Make a Markdown table of the goods and their prices.", "Show this as a table in Markdown.")
    rows = "\n".join(f"| {word} | {price} |" for word, price in pairs)
    return Task(wish, commas(f"{word} costs {price}" for word, price in pairs), f"| item | price |\n|---|---|\n{rows}")


@family
def stock_total(rng: random.Random, size: int) -> Task:
    lines = [(rng.choice(FRUITS), rng.randint(1, 40)) for _ in range(size)]
    totals: dict[str, int] = {}
    for fruit, count in lines:
        totals[fruit] = totals.get(fruit, 0) + count
    wish = ask(rng, "Add up the stock by kind.", "How much is there of each fruit?", "Summarise the deliveries.")
    given = "\n".join(f"{WEEKDAYS[rng.randrange(7)]}: {counted(count, fruit)}" for fruit, count in lines)
    return Task(wish, given, "\n".join(f"{fruit}: {totals[fruit]}" for fruit in sorted(totals)))


@family
def walk(rng: random.Random, size: int) -> Task:
    steps = {"north": (0, 1), "south": (0, -1), "east": (1, 0), "west": (-1, 0)}
    x = y = 0
    moves, lines = rng.choices(list(steps), k=min(size, 40)), []
    for move in moves:
        x, y = x + steps[move][0], y + steps[move][1]
        lines.append(f"{move}: ({x}, {y})")
    wish = ask(
        rng, "Start at (0, 0) and follow the moves. Where do you end?", "Follow the way on the grid from (0, 0)."
    )
    if rng.random() < 0.4:
        return Task(wish, commas(moves), f"({x}, {y})")
    return Task(wish + " Write down every position.", commas(moves), "\n".join(lines))


@family
def letter(rng: random.Random, size: int) -> Task:
    to, sender, place = rng.choice(FIRST_NAMES), rng.choice(FIRST_NAMES), rng.choice(PLACES)
    day, hour = rng.choice(WEEKDAYS), rng.randint(9, 19)
    wish = ask(
        rng,
        "Write a short letter from {a} to {b}: meet at the {p} on {d} at {h}.",
        "{a} wants to meet {b} at the {p} on {d} at {h} o'clock. Write the message.",
        a=sender,
        b=to,
        p=place,
        d=day,
        h=hour,
    )
    bring = several(rng, TOOLS + FOODS, min(size, 16))
    body = f"I hope you are well. Let us meet at the {place} on {day} at {hour} o'clock."
    if size > 3:
        wish += " Ask to bring: " + joined(bring) + "."
        body += " Please bring " + joined([f"the {thing}" for thing in bring]) + "."
    return Task(wish, "", f"Dear {to},\n\n{body}\n\nKind regards,\n{sender}")


@family
def plan_day(rng: random.Random, size: int) -> Task:
    hour, lines = rng.randint(6, 9), []
    acts = (
        "clean the {}",
        "go to the {}",
        "walk through the {}",
        "meet {n} at the {}",
        "read in the {}",
        "draw the {}",
    )
    for i in range(min(size, 24)):
        act = rng.choice(acts).format(rng.choice(PLACES), n=rng.choice(FIRST_NAMES))
        minutes = hour * 60 + 35 * i
        lines.append((f"{minutes // 60:02d}:{minutes % 60:02d}", act))
    wish = ask(
        rng,
        "Make a timetable, 35 minutes for each thing, starting at {h:02d}:00.",
        "Plan my day from {h:02d}:00 in steps of 35 minutes.",
        h=hour,
    )
    return Task(wish, "; ".join(act for _, act in lines), "\n".join(f"{time} {act}" for time, act in lines))


@family
def receipt(rng: random.Random, size: int) -> Task:
    lines = [(rng.randint(1, 9), rng.choice(FRUITS + FOODS), rng.randint(1, 20)) for _ in range(min(size, 30))]
    wish = ask(
        rng,
        "Write the receipt with the total.",
        "Compute each line and the sum.",
        "What does the customer pay? Show the bill.",
    )
    bill = [f"{n} × {thing} at {price} = {n * price}" for n, thing, price in lines]
    total = sum(n * price for n, _, price in lines)
    return Task(
        wish, commas(f"{n} {thing} at {price}" for n, thing, price in lines), "\n".join([*bill, f"Total {total}"])
    )


@family
def full_names(rng: random.Random, size: int) -> Task:
    pairs = [(rng.choice(FIRST_NAMES), rng.choice(LAST_NAMES)) for _ in range(size)]
    kind = rng.choice(("initials", "last name first", "e-mail addresses"))
    forms = {
        "initials": lambda a, b: f"{a[0]}. {b[0]}.",
        "last name first": lambda a, b: f"{b}, {a}",
        "e-mail addresses": lambda a, b: f"{a.lower()}.{b.lower()}@example.com",
    }
    wish = ask(rng, "Write the names as {k}.", "Turn the list of names into {k}.", k=kind)
    return Task(wish, commas(f"{a} {b}" for a, b in pairs), "\n".join(forms[kind](a, b) for a, b in pairs))


@family
def write_date(rng: random.Random, size: int) -> Task:
    dates = [(rng.randint(1, 28), rng.randint(1, 12), rng.randint(1990, 2030)) for _ in range(max(1, size // 2))]
    wish = ask(
        rng, "Write the dates in the form YYYY-MM-DD.", "Convert to ISO dates.", "Bring the dates into the ISO format."
    )
    given = "; ".join(f"{d} {MONTHS[m - 1]} {y}" for d, m, y in dates)
    return Task(wish, given, "\n".join(f"{y:04d}-{m:02d}-{d:02d}" for d, m, y in dates))


@family
def sort_records(rng: random.Random, size: int) -> Task:
    rows = people(rng, min(max(size, 2), 26))
    wish = ask(
        rng,
        "Sort the people by age, youngest first.",
        "Order these records by age.",
        "List them from the youngest to the oldest.",
    )
    done = sorted(rows, key=lambda row: row[1])
    return Task(wish, "\n".join(f"{n} {a}" for n, a, _ in rows), "\n".join(f"{n} {a}" for n, a, _ in done))


@family
def mixed_colours(rng: random.Random, size: int) -> Task:
    things = [(rng.choice(COLOURS), rng.choice(FRUITS + TOOLS)) for _ in range(size)]
    colour = rng.choice(things)[0]
    kept = [thing for c, thing in things if c == colour]
    wish = ask(rng, "Which things are {c}?", "List everything that is {c}.", "Pick out the {c} things.", c=colour)
    return Task(wish, commas(f"a {c} {thing}" for c, thing in things), joined([f"the {thing}" for thing in kept]))
