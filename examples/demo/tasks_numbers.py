"""Families of tasks about numbers, amounts, dates and calculations in steps."""

from __future__ import annotations

import datetime
import random

from tasks import Task, ask, commas, counted, family, joined, numbers
from words import FIRST_NAMES, FOODS, FRUITS, MONTHS, TOOLS, WEEKDAYS


@family
def addition(rng: random.Random, size: int) -> Task:
    given = numbers(rng, size)
    wish = ask(
        rng, "Add these numbers.", "What is the sum of the numbers?", "Work out the total.", "Sum up the list below."
    )
    if size <= 3:
        return Task(wish, " + ".join(map(str, given)), str(sum(given)))
    lines, total = [], 0
    for number in given:
        lines.append(f"{total} + {number} = {total + number}")
        total += number
    return Task(wish + " Show each step.", commas(given), "\n".join(lines) + f"\nThe sum is {total}.")


@family
def subtraction_story(rng: random.Random, size: int) -> Task:
    name, thing, start = rng.choice(FIRST_NAMES), rng.choice(FRUITS), rng.randint(20, 99)
    story, left = [f"{name} has {counted(start, thing)}."], start
    for _ in range(min(size, 9)):
        gone = rng.randint(1, max(1, left // 3))
        verb = rng.choice(("gives away", "eats", "sells", "loses"))
        story.append(f"{rng.choice(('Then', 'Next', 'Later'))} {name} {verb} {gone}.")
        left -= gone
        if left < 4:
            break
    wish = ask(rng, "How many are left?", "Read the story and tell me how many remain.", "Solve the word problem.")
    return Task(wish, " ".join(story), f"{name} has {counted(left, thing)} left.")


@family
def multiplication(rng: random.Random, size: int) -> Task:
    a, b = rng.randint(2, 12), rng.randint(11, 99)
    wish = ask(rng, "What is {a} times {b}?", "Multiply {a} by {b}.", "Calculate {a} × {b}.", a=a, b=b)
    if size < 5:
        return Task(wish, "", str(a * b))
    tens, ones = b // 10 * 10, b % 10
    parts = f"{a} × {tens} = {a * tens}\n{a} × {ones} = {a * ones}\n{a * tens} + {a * ones} = {a * b}"
    return Task(wish + " Show your work.", "", f"{parts}\nSo {a} × {b} = {a * b}.")


@family
def sort_numbers(rng: random.Random, size: int) -> Task:
    given, down = numbers(rng, size, 200), rng.random() < 0.5
    order = "descending" if down else "ascending"
    direction = "largest to smallest" if down else "smallest to largest"
    wish = ask(
        rng,
        "Sort the numbers in {order} order.",
        "Put these numbers in order from {direction}.",
        "Arrange the list from {direction}.",
        "Order the following, {order}.",
        order=order,
        direction=direction,
    )
    return Task(wish, commas(given), commas(sorted(given, reverse=down)))


@family
def extremes(rng: random.Random, size: int) -> Task:
    given = numbers(rng, size, 500)
    kind = rng.choice(("largest", "smallest", "range"))
    if kind == "range":
        wish = ask(
            rng, "What is the range of these numbers?", "Find the difference between the largest and the smallest."
        )
        return Task(wish, commas(given), f"{max(given)} - {min(given)} = {max(given) - min(given)}")
    wish = ask(
        rng, "Find the {kind} number.", "Which number is the {kind}?", "Name the {kind} value in the list.", kind=kind
    )
    return Task(wish, commas(given), str(max(given) if kind == "largest" else min(given)))


@family
def filter_numbers(rng: random.Random, size: int) -> Task:
    given, kind = numbers(rng, size), rng.choice(("even", "odd", "greater than 50"))
    tests = {"even": lambda n: n % 2 == 0, "odd": lambda n: n % 2 == 1, "greater than 50": lambda n: n > 50}
    kept = [number for number in given if tests[kind](number)]
    wish = ask(
        rng,
        "Keep only the numbers that are {kind}.",
        "Which of these numbers are {kind}?",
        "From the list, pick every number that is {kind}.",
        kind=kind,
    )
    return Task(wish, commas(given), commas(kept) if kept else "None of them.")


@family
def continue_sequence(rng: random.Random, size: int) -> Task:
    start, step, shown = rng.randint(1, 40), rng.randint(2, 12), rng.randint(4, 6)
    terms = [start + step * i for i in range(shown + min(size, 40))]
    more = len(terms) - shown
    wish = ask(
        rng,
        "Continue the sequence with {more} more numbers.",
        "What are the next {more} terms?",
        "Write the {more} numbers that come next.",
        more=more,
    )
    return Task(wish, commas(terms[:shown]), commas(terms[shown:]))


UNITS = (
    ("kilometres", "metres", 1000),
    ("metres", "centimetres", 100),
    ("hours", "minutes", 60),
    ("kilograms", "grams", 1000),
    ("weeks", "days", 7),
    ("litres", "millilitres", 1000),
    ("minutes", "seconds", 60),
)


@family
def convert_units(rng: random.Random, size: int) -> Task:
    large, small, factor = rng.choice(UNITS)
    if size < 6:
        amount = rng.randint(2, 60)
        wish = ask(
            rng,
            "Convert {n} {large} to {small}.",
            "How many {small} are {n} {large}?",
            "Express {n} {large} in {small}.",
            n=amount,
            large=large,
            small=small,
        )
        return Task(wish, "", f"{amount * factor} {small}")
    given = numbers(rng, min(size, 30), 60)
    wish = ask(
        rng,
        "Convert every amount from {large} to {small}.",
        "Write a table of these {large} in {small}.",
        large=large,
        small=small,
    )
    return Task(wish, commas(given), "\n".join(f"{counted(n, large[:-1])} = {n * factor} {small}" for n in given))


@family
def coins(rng: random.Random, size: int) -> Task:
    amount, parts = rng.randint(5, 40 + 10 * min(size, 20)), []
    rest = amount
    for coin in (100, 50, 20, 10, 5, 2, 1):
        if rest >= coin:
            parts.append(f"{rest // coin} × {coin}")
            rest %= coin
    wish = ask(
        rng,
        "Pay {n} cents with the fewest coins (100, 50, 20, 10, 5, 2, 1).",
        "Which coins make {n} cents?",
        "Break {n} cents into as few coins as possible.",
        n=amount,
    )
    return Task(wish, "", joined(parts))


@family
def add_days(rng: random.Random, size: int) -> Task:
    day = datetime.date(2021, 1, 1) + datetime.timedelta(days=rng.randint(0, 1400))
    later = day + datetime.timedelta(days=rng.randint(1, 4 * size + 6))
    days = (later - day).days
    texts = [f"{d.day} {MONTHS[d.month - 1]} {d.year}" for d in (day, later)]
    wish = ask(
        rng,
        "Which date is {days} days after {day}?",
        "Add {days} days to {day}.",
        "It is {day}. What is the date in {days} days?",
        days=days,
        day=texts[0],
    )
    return Task(wish, "", texts[1])


@family
def weekday(rng: random.Random, size: int) -> Task:
    today, days = rng.randrange(7), rng.randint(1, 3 * size + 8)
    wish = ask(
        rng,
        "Today is {today}. Which day is it in {days} days?",
        "If today is {today}, what day comes {days} days later?",
        today=WEEKDAYS[today],
        days=days,
    )
    answer = WEEKDAYS[(today + days) % 7]
    if size > 5:
        wish += " Explain."
        weeks, rest = divmod(days, 7)
        answer = f"{days} days are {weeks} weeks and {rest} days. {rest} days after {WEEKDAYS[today]} comes {answer}."
    return Task(wish, "", answer)


@family
def duration(rng: random.Random, size: int) -> Task:
    start, length = rng.randint(6 * 60, 14 * 60), rng.randint(10, 30 * min(size, 14) + 20)
    end = start + length
    clock = [f"{t // 60:02d}:{t % 60:02d}" for t in (start, end)]
    wish = ask(
        rng,
        "How long is it from {a} to {b}?",
        "A train leaves at {a} and arrives at {b}. How long does it take?",
        "A lesson begins at {a} and ends at {b}. Give its length.",
        a=clock[0],
        b=clock[1],
    )
    hours, minutes = divmod(length, 60)
    parts = [counted(n, unit) for n, unit in ((hours, "hour"), (minutes, "minute")) if n]
    return Task(wish, "", joined(parts))


@family
def discount(rng: random.Random, size: int) -> Task:
    lines, total = [], 0
    percent = rng.choice((10, 20, 25, 50))
    goods = rng.choices(TOOLS, k=min(size, 25))
    prices = [rng.randrange(4, 60) * 20 for _ in goods]
    for thing, price in zip(goods, prices, strict=True):
        off = price * percent // 100
        lines.append(f"{thing}: {price} - {off} = {price - off}")
        total += price - off
    wish = ask(
        rng,
        "Take {p} percent off each price and give the total.",
        "There is a discount of {p} percent. Work out what is to be paid.",
        p=percent,
    )
    listed = commas(f"{thing} {price}" for thing, price in zip(goods, prices, strict=True))
    return Task(wish, listed, "\n".join(lines) + f"\nTotal: {total}")


@family
def trace_code(rng: random.Random, size: int) -> Task:
    start, step, rounds = rng.randint(0, 9), rng.randint(1, 7), min(size, 45)
    sign, name = rng.choice("+*" if rounds < 6 else "+"), rng.choice("xnts")
    code = f"{name} = {start}\nfor i in range({rounds}):\n    {name} = {name} {sign} {step}\n    print({name})"
    value, printed = start, []
    for _ in range(rounds):
        value = value + step if sign == "+" else value * step
        printed.append(str(value))
    wish = ask(rng, "What does this program print?", "Trace the code and write its output.", "Run the program by hand.")
    return Task(wish, code, "\n".join(printed))


@family
def compare(rng: random.Random, size: int) -> Task:
    pairs = [(rng.randint(1, 999), rng.randint(1, 999)) for _ in range(max(1, min(size - 1, 20)))]
    sign = {-1: "<", 0: "=", 1: ">"}
    done = [f"{a} {sign[(a > b) - (a < b)]} {b}" for a, b in pairs]
    wish = ask(
        rng,
        "Put <, > or = between the numbers.",
        "Compare the numbers in each pair.",
        "Fill in the right sign: <, > or =.",
    )
    return Task(wish, "\n".join(f"{a} _ {b}" for a, b in pairs), "\n".join(done))


@family
def scale_recipe(rng: random.Random, size: int) -> Task:
    factor, foods = rng.randint(2, 6), rng.sample(FOODS, min(max(size, 2), len(FOODS)))
    grams = [rng.randrange(1, 30) * 10 for _ in foods]
    wish = ask(
        rng,
        "Multiply this recipe by {f}.",
        "The recipe is for one cake. Give the amounts for {f} cakes.",
        "Scale the recipe {f} times.",
        f=factor,
    )
    listed = "\n".join(f"{g} g {food}" for g, food in zip(grams, foods, strict=True))
    return Task(wish, listed, "\n".join(f"{g * factor} g {food}" for g, food in zip(grams, foods, strict=True)))
