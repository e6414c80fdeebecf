"""Name the first layer at which two models differ, and what such a pattern usually means.

The rows of the comparison are read from causes to effects: settings, weights, hidden states of each sample alone,
hidden states in packs, labels, gradients. docs/verify.md lists the patterns.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from mindspeed_llm.verify.comparison import (
    TEMPLATE,
    ComparedRow,
    Sides,
    differing_weights,
    hidden_differences,
    relative_difference,
)
from mindspeed_llm.verify.layer_taps import Tap
from mindspeed_llm.verify.recording import PROBED_SLOTS, Way

MAX_NAMES = 3


@dataclass(frozen=True)
class Diagnosis:
    """Explanation of a failed comparison.

    Attributes:
        first: one line: the first place at which the hidden states differ, or that they do not.
        patterns: one line for each pattern that was recognised.
    """

    first: str
    patterns: tuple[str, ...]


def diagnose(sides: Sides, rows: Sequence[ComparedRow], taps: Sequence[Tap]) -> Diagnosis:
    """Explain failed rows.

    Args:
        sides: the recordings.
        rows: rows of the comparison, at least one of which failed.
        taps: taps of the model in their order.
    """
    failed = {row.name for row in rows if row.fails}
    patterns = [*_settings(sides, rows), *_weights(sides)] if failed else []
    alone = _first_difference(sides, taps, "alone")
    packed = _first_difference(sides, taps, "packed") if alone is None else None
    if alone is not None:
        first = f"first difference, each sample alone: {alone.place}"
        patterns += [] if patterns else [_meaning(sides, alone.tap)]
    elif packed is not None:
        first = f"first difference, in packs only: {packed.place}"
    else:
        first = f"no layer differs in the first {PROBED_SLOTS} slots"
        if "logits, each sample alone" in failed:
            first += ", the logits do"
            patterns += [] if patterns else [_OUTPUT]
    if alone is None and (packed is not None or "logits, each sample in its pack" in failed) and not patterns:
        patterns.append(_boundaries(sides, rows))
    if TEMPLATE in failed:
        patterns.append(_TEMPLATE)
    same_logits = not any("logits" in name for name in failed)
    if same_logits and any(name.startswith("loss") or name == "first step: loss" for name in failed):
        patterns.append(_LABELS if "loss, each sample alone" in failed else _LABELS_OF_PACKS)
    elif same_logits and not patterns and any("gradient" in name for name in failed):
        patterns.append(_GRADIENTS)
    return Diagnosis(first, tuple(patterns))


_OUTPUT = (
    "the output layer: tied weights (tie_word_embeddings), an output layer that was not saved, or rows of the "
    "vocabulary in another order"
)
_LABELS = (
    "labels: the logits agree and the losses do not, so the labels are shifted by another number of tokens, or other "
    "tokens are trained"
)
_LABELS_OF_PACKS = (
    "labels of packs: the losses differ although logits and the losses of single samples agree, so the labels are "
    "shifted across a boundary, or the losses are weighted differently (--loss-normalization)"
)
_TEMPLATE = (
    "template: the exported model is prompted with another text than it was trained on; export again with --save-hf, "
    "or copy the chat template of the checkpoint"
)
_GRADIENTS = (
    "the backward pass or the sum over ranks: logits and losses agree; compare the layout with one process, and look "
    "at the parameter that the table names"
)


def _settings(sides: Sides, rows: Sequence[ComparedRow]) -> Iterator[str]:
    """Yield a line for each setting that differs."""
    for row in rows:
        if row.fails and row.name == "epsilon of the norms":
            yield f"eps: the norms have another epsilon ({row.where}; ours first): rms_norm_eps in config.json"
        if row.fails and row.name == "rotary frequencies":
            yield f"rope base: the rotary frequencies differ{_bases(sides)}: rope_theta or rope scaling in config.json"
    if sides.own.tied != sides.theirs.tied:
        own, theirs = ("are" if one.tied else "are not" for one in (sides.own, sides.theirs))
        yield f"tied weights: input embedding and output layer {own} one tensor here, and {theirs} in transformers"


def _bases(sides: Sides) -> str:
    """Return the rotary base of both sides, if their frequencies are powers of one."""
    found = []
    for one in (sides.own, sides.theirs):
        if one.frequencies is None or len(one.frequencies) < 2:
            return ""
        # The frequencies are base^(-2i/d), of which the second is base^(-2/d) with d/2 frequencies.
        found.append(float(one.frequencies[1]) ** -len(one.frequencies))
    return f" (base {found[0]:.6g} here, {found[1]:.6g} in transformers)"


def _weights(sides: Sides) -> Iterator[str]:
    """Yield a line for each kind of difference between the weights."""
    own, theirs = sides.own.digests, sides.theirs.digests
    different = differing_weights(sides.own, sides.theirs)
    by_digest = {own[name]: name for name in different if name in own}
    exchanged = [
        (name, other)
        for name in different
        if name in theirs and (other := by_digest.get(theirs[name])) is not None and theirs.get(other) == own.get(name)
    ]
    if exchanged:
        first, second = sorted(exchanged[0])
        kind = "gate and up exchanged" if {_kind(first), _kind(second)} == {"gate", "up"} else "exchanged"
        yield f"{kind}: {first} and {second} hold each other's values ({len(exchanged) // 2} pairs)"
    missing = [name for name in sides.theirs.missing if name in different or name not in theirs]
    biases = [name for name in missing if name.endswith(".bias")]
    if biases:
        yield f"missing bias: not in the files, so that transformers has initialised it: {_some(biases)}"
    others = [name for name in missing if name not in biases]
    if others:
        yield f"missing weights: not in the files, so that transformers has initialised them: {_some(others)}"
    explained = {name for pair in exchanged for name in pair} | set(missing)
    # A tied output layer has no name of its own, so that only one side has it.
    is_tied_alike = sides.own.tied == sides.theirs.tied
    rest = [n for n in different if n not in explained and (is_tied_alike or (n in own and n in theirs))]
    if rest and all(name.endswith(".bias") for name in rest):
        yield f"bias: only biases differ: {_some(rest)}"
    elif rest:
        yield f"weights: other values: {_some(rest)}"


def _kind(name: str) -> str:
    """Return 'gate' or 'up' for the two projections of a gated MLP; '' for other tensors."""
    return next((kind for kind in ("gate", "up") if f".{kind}_" in name), "")


def _some(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")


@dataclass(frozen=True)
class _Difference:
    """A tap whose hidden states differ, and a description of it."""

    tap: Tap
    place: str


def _first_difference(sides: Sides, taps: Sequence[Tap], way: Way) -> _Difference | None:
    """Return the first tap whose hidden states differ."""
    found = hidden_differences(sides, way, [tap.name for tap in taps])
    for tap in taps:
        difference, limit = found[tap.name]
        if not difference <= limit:
            return _Difference(tap, f"{tap.name} (relative difference {difference:.1e}, limit {limit:.1e})")
    return None


def _meaning(sides: Sides, tap: Tap) -> str:
    """Return what it usually means that hidden states differ first at a tap, where weights and settings agree."""
    if tap.part == "embedding":
        return "the embedding: rows of the vocabulary in another order, or positions of a position table"
    if tap.part == "norm":
        return "eps: the input of the norm agrees and its output does not: its epsilon, or its weight"
    if tap.part == "MLP":
        return (
            "gate and up exchanged, or another activation function: the input of the MLP agrees and its output does not"
        )
    if _first_token_agrees(sides, tap):
        return (
            "rope base: attention agrees at the first token of a sample and differs after it, so that values agree and "
            "positions do not: rope base, rope scaling, or position ids"
        )
    return (
        "bias: attention differs at the first token already, where positions do not matter: a bias of query, key and "
        "value that is not added, the order of heads, or the output projection"
    )


def _first_token_agrees(sides: Sides, tap: Tap) -> bool:
    """Return whether the hidden states of the first token of every probed sample agree at a tap."""
    starts = [s.start for s in sides.samples if s.pack == 0 and s.start < PROBED_SLOTS]
    ours = sides.own.tensors.get(f"hidden/alone/{tap.name}")[starts]
    theirs = sides.theirs.tensors.get(f"hidden/alone/{tap.name}")[starts]
    return relative_difference(ours, theirs) <= sides.limits.of("hidden")


def _boundaries(sides: Sides, rows: Sequence[ComparedRow]) -> str:
    where = next((row.where for row in rows if row.name == "logits, each sample in its pack"), "")
    return (
        f"boundaries: a sample gives other logits in its pack than alone (largest: {where}), so that it attends to "
        "other tokens or has other positions: a boundary is moved, or the data need --neat-pack or --reset-position-ids"
    )
