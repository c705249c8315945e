"""The tab "Model": what ``vconv info`` knows, drawn, and every voice to hear."""

from __future__ import annotations

from typing import TYPE_CHECKING

import gradio as gr

from vconv.errors import VconvError

from .site import Site, sentence
from .stage import escape, facts, message, play_button

if TYPE_CHECKING:
    from vconv.manifest import Manifest

# What a quality figure is called, and what the best and worst would be.
_FIGURES = {
    "probe_latents": ("listens to the units", 0.0, 1.5, "nats lost with another utterance's"),
    "probe_speaker": ("listens to the voice", 0.0, 1.5, "nats lost with another speaker's"),
    "heldout_codes_used": ("codes in use", 0.0, 1.0, "of the codebook, on held-out speech"),
    "heldout_perplexity": ("perplexity", 0.0, 0.0, "as if so many codes were used alike"),
    "heldout_nll": ("likelihood, held out", 0.0, 5.55, "nats a sample, lower is better"),
}


def build(site: Site, model: gr.Dropdown) -> gr.HTML:
    """Draw the tab; returns what shows the model."""
    with gr.Row():
        model.render()
    return gr.HTML(shown(site, site.shelf.default), elem_id="model-shown")


def shown(site: Site, name: str) -> str:
    """A model's page; a model that cannot be opened is a sentence."""
    try:
        manifest = site.shelf.bundle(name).manifest
    except VconvError as error:
        return message(sentence(error), "error")
    return "".join(
        [
            facts(_figures(manifest)),
            _voices(site, name, manifest),
            '<div class="vc-section vc-cards">',
            _quality(manifest),
            _card("What it was trained on", manifest.data.statement, _hours(manifest)),
            _card("Terms of the data", manifest.data.licence),
            _card("Limits", manifest.limits or "The model states none."),
            "</div>",
            _command(manifest),
        ]
    )


def _figures(manifest: Manifest) -> list[tuple[str, str]]:
    from vconv.describe import chunk_latency

    size = sum(file.size for file in manifest.files.values()) / 1e6
    units = manifest.bottleneck
    rows = [
        ("voices", f"{len(manifest.speakers)}"),
        ("units a second", f"{manifest.unit_rate:g}"),
    ]
    if units.codebook_size is not None:
        rows.append(("codes", f"{units.codebook_size:,}"))
        rows.append(("of speech", f"{units.bits_per_second or 0:g} bit/s"))
    rows += [
        ("latency, live", f"{chunk_latency(manifest):.2f} s"),
        ("on disk", f"{size:.1f} MB"),
        ("training steps", f"{manifest.training.steps:,}"),
    ]
    return rows


def _voices(site: Site, name: str, manifest: Manifest) -> str:
    cells = []
    for index, voice in enumerate(manifest.speakers):
        button = (
            play_button(f"a sample of {voice}", f"page/voice/{name}/{index}")
            if site.shelf.sample(name, index) is not None
            else ""
        )
        cells.append(
            f'<div class="vc-voice">{button}<b>{escape(voice)}</b><small>{index}</small></div>'
        )
    grid = f'<div class="vc-voices">{"".join(cells)}</div>'
    return f'<div class="vc-section"><h3>Voices</h3>{grid}</div>'


def _quality(manifest: Manifest) -> str:
    figures, codes = manifest.quality, manifest.bottleneck.codebook_size
    rows = []
    for key, (label, low, high, what) in _FIGURES.items():
        if key not in figures:
            continue
        rail, high = "", high or float(codes or 0) or figures[key]
        if f"{key}_low" in figures and f"{key}_high" in figures:
            ends = [_part(figures[f"{key}_{end}"], low, high) for end in ("low", "high")]
            rail = f'<u style="left:{ends[0]:.1f}%;width:{ends[1] - ends[0]:.1f}%"></u>'
        rows.append(
            f'<div class="vc-meter"><span>{escape(label)}<small>{escape(what)}</small></span>'
            f'<span class="vc-rail"><i style="width:{_part(figures[key], low, high):.1f}%"></i>'
            f"{rail}</span><span>{_number(key, figures[key])}</span></div>"
        )
    others = [key for key in figures if not key.startswith(tuple(_FIGURES)) and key != "step"]
    rows += [
        f'<div class="vc-meter"><span>{escape(key.replace("_", " "))}</span><span></span>'
        f"<span>{figures[key]:.4g}</span></div>"
        for key in others
    ]
    if not rows:
        return _card("Quality", "The model states no figures.")
    return f'<div class="vc-card"><h3>Quality</h3>{"".join(rows)}</div>'


def _number(key: str, value: float) -> str:
    if key == "heldout_codes_used":
        return f"{100 * value:.0f} %"
    return f"{value:.0f}" if key == "heldout_perplexity" else f"{value:.2f}"


def _part(value: float, low: float, high: float) -> float:
    return 100 * min(1.0, max(0.0, (value - low) / (high - low)))


def _hours(manifest: Manifest) -> str:
    told = "hours" in manifest.data.statement
    return f" {manifest.data.hours:.1f} hours." if manifest.data.hours and not told else ""


def _card(title: str, text: str, more: str = "") -> str:
    return f'<div class="vc-card"><h3>{escape(title)}</h3><p>{escape(text + more)}</p></div>'


def _command(manifest: Manifest) -> str:
    tools = ", ".join(f"{tool} {version}" for tool, version in manifest.tools.items())
    return (
        f'<div class="vc-section"><h3>How it was made</h3>'
        f'<div class="vc-code" tabindex="0">{escape(manifest.training.command)}</div>'
        f'<p class="vc-sample">With {escape(tools)}.</p></div>'
    )
