"""A pack as one page of HTML that needs nothing else: no script, no font, no picture from anywhere."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from mindspeed_llm.errors import DataError
from mindspeed_llm.indexed import Manifest
from mindspeed_llm.reports.figures import COLOURS
from mindspeed_llm.reports.pack_terminal import visible
from mindspeed_llm.reports.pack_view import PackView, SampleView
from mindspeed_llm.storage.atomic import write_atomically

BARS = 32  # of a histogram
STYLE = """
:root { color-scheme: light dark; --ink: #222; --muted: #667; --ground: #fff; --box: #f5f6f8; --line: #dde0e4; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --muted: #99a0ab; --ground: #16181c; --box: #1f2227; --line: #343941; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--ground);
  max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.35rem; margin: 0 0 .2rem; } h2 { font-size: 1.05rem; margin: 2rem 0 .5rem; }
p, td, figcaption { color: var(--muted); } td + td { color: var(--ink); }
table { border-collapse: collapse; } td { padding: .1rem 1.2rem .1rem 0; vertical-align: top; overflow-wrap: anywhere; }
td:first-child { white-space: nowrap; }
.top { display: flex; flex-wrap: wrap; gap: 1rem 3rem; } .top > * { flex: 1 1 22rem; min-width: 0; }
figure { margin: 0 0 1.2rem; } svg { width: 100%; height: 5.5rem; background: var(--box); border-radius: 4px; }
.slots { display: flex; height: 2rem; border-radius: 4px; overflow: hidden; background: var(--line); }
.slots a { background: var(--c); border-right: 1px solid var(--ground); box-sizing: border-box; min-width: 0; }
.sample { border-left: 5px solid var(--c); background: var(--box); border-radius: 0 4px 4px 0; margin: .8rem 0;
  padding: .5rem .9rem; }
.sample header { color: var(--muted); font-size: .82rem; margin-bottom: .3rem; }
.sample pre { margin: 0; font: 13px/1.55 ui-monospace, monospace; white-space: pre-wrap; overflow-wrap: anywhere;
  color: var(--muted); }
mark { color: var(--ink); background: color-mix(in srgb, var(--c) 26%, transparent); border-radius: 2px; }
"""


def write_page(
    path: str | Path, view: PackView, summary: Sequence[tuple[str, str]], manifest: Manifest | None, name: str
) -> Path:
    """Write the page, whole or not at all.

    Raises:
        DataError: the place cannot be written.
    """
    path = Path(path)
    try:
        write_atomically(path, page(view, summary, manifest, name).encode("utf-8", "replace"))
    except OSError as error:
        raise DataError(f"--html {path}: cannot be written ({error.strerror}); choose another place") from error
    return path


def page(view: PackView, summary: Sequence[tuple[str, str]], manifest: Manifest | None, name: str) -> str:
    """The page as text; all that comes from the data is escaped."""
    title = f"{escape(name)}: pack {view.number:,}"
    cells = "".join(f"<tr><td>{escape(key)}</td><td>{escape(visible(value))}</td></tr>" for key, value in summary)
    pictures = ""
    if manifest is not None:
        pictures = _histogram("length of samples, in tokens", manifest.histograms.sample_length)
        pictures += _histogram("samples in a pack", manifest.histograms.samples_per_pack)
    share = 100 * view.trained / view.tokens if view.tokens else 0.0
    slots = _slots(view)
    note = f"<p>{escape(view.note)}</p>" if view.note else ""
    samples = "".join(_sample(number, sample) for number, sample in enumerate(view.samples, start=1))
    padding = f"<p>padding: {view.padding:,} slots, never trained</p>" if view.padding else ""
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n"
        f"<h1>{escape(name)}</h1>\n"
        f'<div class="top"><table>{cells}</table><div>{pictures}</div></div>\n'
        f"<h2>Pack {view.number:,} (the last is {view.packs - 1:,})</h2>\n"
        f"<p>{len(view.samples):,} samples, {view.tokens:,} tokens, {view.trained:,} trained ({share:.1f} %), "
        f"{view.padding:,} slots of padding. Each block of the bar is a sample; what is trained is "
        f'<mark style="--c:{COLOURS[0]}">marked</mark>.</p>{note}\n'
        f'<div class="slots">{slots}</div>\n{samples}{padding}\n</body></html>\n'
    )


def _slots(view: PackView) -> str:
    """The pack as a bar: a block for each sample, gaps for padding."""
    blocks, place = [], 0
    for number, sample in enumerate(view.samples, start=1):
        blocks.append(_gap(sample.start - place))
        blocks.append(
            f'<a href="#s{number}" style="--c:{_colour(number)};flex:{sample.tokens} 0 0" '
            f'title="sample {number}: {sample.tokens:,} tokens, {sample.trained:,} trained"></a>'
        )
        place = sample.start + sample.tokens
    return "".join([*blocks, _gap(view.tokens + view.padding - place)])


def _gap(slots: int) -> str:
    return f'<span style="flex:{slots} 0 0" title="padding: {slots:,} slots"></span>' if slots else ""


def _colour(number: int) -> str:
    return COLOURS[(number - 1) % len(COLOURS)]


def _sample(number: int, sample: SampleView) -> str:
    text = "".join(
        f"<mark>{escape(visible(stretch.text))}</mark>" if stretch.trained else escape(visible(stretch.text))
        for stretch in sample.stretches
    )
    last = sample.start + sample.tokens - 1
    head = (
        f"sample {number} · slots {sample.start:,} to {last:,} · {sample.tokens:,} tokens, {sample.trained:,} trained"
    )
    return (
        f'<section class="sample" id="s{number}" style="--c:{_colour(number)}"><header>{head}</header>'
        f"<pre>{text}</pre></section>\n"
    )


def _histogram(title: str, pairs: Sequence[Sequence[int]]) -> str:
    """[[value, count]...] as bars of equal width."""
    if not pairs:
        return ""
    low, high = pairs[0][0], pairs[-1][0]
    width = max(1, -(-(high - low + 1) // BARS))
    bars = [0] * (-(-(high - low + 1) // width))
    for value, count in pairs:
        bars[(value - low) // width] += count
    most = max(bars) or 1
    drawn = "".join(
        f'<rect x="{number}.08" y="{100 - 100 * count / most:.2f}" width=".84" height="{100 * count / most:.2f}">'
        f"<title>{low + number * width:,} to {low + (number + 1) * width - 1:,}: {count:,}</title></rect>"
        for number, count in enumerate(bars)
    )
    return (
        f'<figure><svg viewBox="0 0 {len(bars)} 104" preserveAspectRatio="none" fill="{COLOURS[0]}">{drawn}</svg>'
        f"<figcaption>{escape(title)}: {low:,} to {high:,}</figcaption></figure>"
    )
