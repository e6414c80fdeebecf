"""Compare two recordings: one row for each kind of value, with the place where the difference is largest."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch

from mindspeed_llm.verify.block_sums import largest_difference, norm_of, norm_of_difference
from mindspeed_llm.verify.limits import Limits, Measure
from mindspeed_llm.verify.recording import Recording, Way
from mindspeed_llm.verify.samples import Sample

# A gradient that is far smaller than those of the other parameters is rounding: it is compared with this share of what
# it would be if all elements were equal. The biases of keys are an example: softmax cancels most of their effect.
SMALLEST_SHARE = 1e-2
TEMPLATE = "chat template"


@dataclass(frozen=True)
class ComparedRow:
    """One row of the table.

    Attributes:
        name: what was compared.
        count: number of compared values or tensors.
        difference: largest difference in relation to its limit; NaN and infinity fail.
        limit: its limit.
        where: where it is, such as the name of a parameter.
    """

    name: str
    count: int
    difference: float
    limit: float
    where: str = ""

    @property
    def fails(self) -> bool:
        """Whether the difference is above its limit, or no number."""
        return not self.difference <= self.limit


@dataclass(frozen=True)
class Sides:
    """The recordings of a comparison.

    Attributes:
        own: of this project.
        theirs: of transformers in the same type.
        exact: of transformers in float64; None if it did not run.
        samples: the compared samples.
        limits: the limits.
    """

    own: Recording
    theirs: Recording
    exact: Recording | None
    samples: Sequence[Sample]
    limits: Limits


def compare(sides: Sides, has_weights: bool = True) -> list[ComparedRow]:
    """Compare everything that both sides recorded.

    Args:
        sides: the recordings.
        has_weights: whether weights and gradients are comparable: not with the export of a merged adapter.
    """
    rows = [_weights(sides), *_settings(sides)] if has_weights else _settings(sides)
    rows += [_logits(sides, "alone"), _logits(sides, "packed"), _losses(sides, "alone"), _losses(sides, "packed")]
    rows.append(_scalar("first step: loss", "step loss", sides, lambda one: one.step_loss, is_relative=False))
    if has_weights:
        rows.append(_scalar("first step: gradient norm", "norm", sides, lambda one: one.gradient_norm, True))
        rows.append(_gradients(sides))
    return rows


def differing_weights(own: Recording, theirs: Recording) -> list[str]:
    """Return the names of the weights that one side does not have, or that differ."""
    return [name for name in own.digests | theirs.digests if own.digests.get(name) != theirs.digests.get(name)]


def hidden_differences(sides: Sides, way: Way, taps: Iterable[str]) -> dict[str, tuple[float, float]]:
    """Return (difference, limit) of the hidden states at each tap.

    Args:
        sides: the recordings.
        way: which streams of this project; transformers has each sample alone.
        taps: names of the taps.
    """
    return {
        name: _with_limit(sides, "hidden", f"hidden/{way}/{name}", f"hidden/alone/{name}", relative_difference)
        for name in taps
    }


def relative_difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the norm of the difference of two tensors [...], relative to the norm of the second."""
    if ours.shape != theirs.shape:
        return math.inf
    size = norm_of(theirs)
    return norm_of_difference(ours, theirs) / size if size else math.inf


def _weights(sides: Sides) -> ComparedRow:
    different = differing_weights(sides.own, sides.theirs)
    where = different[0] if different else ""
    return ComparedRow("weights that differ", len(sides.own.digests), len(different), sides.limits.of("exact"), where)


def _settings(sides: Sides) -> list[ComparedRow]:
    """Compare epsilons, rotary frequencies, and whether the embeddings are tied."""
    own, theirs, limit = sides.own, sides.theirs, sides.limits.of("setting")
    tied = f"{'tied' if own.tied else 'untied'} here, {'tied' if theirs.tied else 'untied'} in transformers"
    is_tied_otherwise = own.tied != theirs.tied
    limit_of_tie = sides.limits.of("exact")
    rows = [
        ComparedRow("tied embeddings", 1, float(is_tied_otherwise), limit_of_tie, tied if is_tied_otherwise else "")
    ]
    names = own.epsilons.keys() & theirs.epsilons.keys()
    if names:
        gaps = {name: abs(own.epsilons[name] - theirs.epsilons[name]) / theirs.epsilons[name] for name in names}
        worst = max((name for name in theirs.epsilons if name in names), key=lambda name: gaps[name])
        values = f"{worst}: {own.epsilons[worst]:g} and {theirs.epsilons[worst]:g}" if gaps[worst] > limit else ""
        rows.append(ComparedRow("epsilon of the norms", len(names), gaps[worst], limit, values))
    if own.frequencies is not None or theirs.frequencies is not None:
        gap = math.inf
        if own.frequencies is not None and theirs.frequencies is not None:
            gap = _largest_ratio(own.frequencies, theirs.frequencies)
        count = 0 if theirs.frequencies is None else len(theirs.frequencies)
        rows.append(ComparedRow("rotary frequencies", count, gap, limit))
    return rows


def _largest_ratio(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest relative difference of two tensors [n] of numbers above 0."""
    return float(((ours - theirs) / theirs).abs().max()) if ours.shape == theirs.shape else math.inf


def _logits(sides: Sides, way: Way) -> ComparedRow:
    found = {}
    for sample in sides.samples:
        names = f"logits/{way}/{sample.number}", f"logits/alone/{sample.number}"
        found[sample.name] = _with_limit(sides, "logits", *names, _relative_to_largest)
    return _worst_of(f"logits, {_WAY_NAMES[way]}", found)


_WAY_NAMES: dict[Way, str] = {"packed": "each sample in its pack", "alone": "each sample alone"}


def _relative_to_largest(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Return the largest difference of two tensors [tokens, vocabulary], relative to the largest value."""
    if ours.shape != theirs.shape:
        return math.inf
    return largest_difference(ours, theirs) / float(theirs.abs().max())


def _with_limit(
    sides: Sides, measure: Measure, own: str, theirs: str, difference: Callable[[torch.Tensor, torch.Tensor], float]
) -> tuple[float, float]:
    """Return the difference between two recorded tensors, and its limit."""
    reference = sides.theirs.tensors.get(theirs)
    error = None if sides.exact is None else difference(reference, sides.exact.tensors.get(theirs))
    return difference(sides.own.tensors.get(own), reference), sides.limits.of(measure, error)


def _losses(sides: Sides, way: Way) -> ComparedRow:
    own, theirs = sides.own.losses[way], sides.theirs.losses["alone"]
    error = None
    if sides.exact is not None:
        exact = sides.exact.losses["alone"]
        error = max((abs(theirs[number] - exact[number]) for number in theirs), default=0.0)
    limit = sides.limits.of("sample loss", error)
    # A sample that one side does not train is a difference.
    found = {
        sides.samples[number].name: (abs(own.get(number, math.inf) - theirs.get(number, math.inf)), limit)
        for number in sorted(own.keys() | theirs.keys())
    }
    return _worst_of(f"loss, {_WAY_NAMES[way]}", found)


def _scalar(
    name: str, measure: Measure, sides: Sides, value: Callable[[Recording], float], is_relative: bool
) -> ComparedRow:
    theirs = value(sides.theirs)
    unit = abs(theirs) if is_relative and theirs else 1.0
    error = None if sides.exact is None else abs(theirs - value(sides.exact)) / unit
    values = f"{value(sides.own):.6f} and {theirs:.6f}"
    return ComparedRow(name, 1, abs(value(sides.own) - theirs) / unit, sides.limits.of(measure, error), values)


def _gradients(sides: Sides) -> ComparedRow:
    names = list(sides.theirs.tensors.names("gradient/"))
    elements = sum(sides.theirs.tensors.get(f"gradient/{name}").numel() for name in names)

    def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
        if ours.shape != theirs.shape:
            return math.inf
        usual = sides.theirs.gradient_norm * math.sqrt(theirs.numel() / elements)
        size = norm_of(theirs)
        size = max(size, SMALLEST_SHARE * usual)
        return norm_of_difference(ours, theirs) / size if size else 0.0

    found = {}
    for name in names:
        key = f"gradient/{name}"
        missing = key not in sides.own.tensors
        found[name] = (math.inf, 0.0) if missing else _with_limit(sides, "gradient", key, key, difference)
    for name in sides.own.tensors.names("gradient/"):
        found.setdefault(name, (math.inf, 0.0))
    return _worst_of("gradient of each parameter", found)


def _worst_of(name: str, found: dict[str, tuple[float, float]]) -> ComparedRow:
    """Return the row of the place with the largest difference in relation to its limit."""

    def severity(where: str) -> float:
        difference, limit = found[where]
        return math.inf if math.isnan(difference) or not limit else difference / limit

    if not found:
        return ComparedRow(name, 0, 0.0, 0.0)
    where = max(found, key=severity)
    return ComparedRow(name, len(found), *found[where], where)
