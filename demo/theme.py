"""The page's look: one accent, system fonts, nothing fetched from elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

_FOLDER = Path(__file__).parent


def css() -> str:
    return (_FOLDER / "page.css").read_text("utf-8")


def head() -> str:
    """What goes into the page's head: its script, and words for those who find it."""
    script = (_FOLDER / "page.js").read_text("utf-8")
    return (
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="description" content="Say something in any voice, hear it in another.">'
        f"<script>{script}</script>"
    )


def theme() -> Any:
    """Gradio's components in these colours."""
    teal = gr.themes.Color(
        *("#f0faf8", "#e3f1ee", "#c2e3dd", "#92cdc3", "#55aea1", "#22897d"),
        *("#0f766e", "#0d5f59", "#0c4c48", "#0b3d3b", "#062523"),
        name="vconv",
    )
    stone = gr.themes.Color(
        *("#fafaf8", "#f3f4f1", "#e6e9e5", "#d3d8d4", "#9aa6a5", "#6b7877"),
        *("#4c5858", "#354142", "#1f2c2e", "#141e20", "#0d1618"),
        name="stone",
    )
    sans = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
    mono = ("ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "monospace")
    made = gr.themes.Base(
        primary_hue=teal,
        secondary_hue=teal,
        neutral_hue=stone,
        radius_size=gr.themes.sizes.radius_lg,
        font=[*sans],
        font_mono=[*mono],
    )
    return made.set(
        body_background_fill="#f7f7f4",
        body_background_fill_dark="#101a1c",
        body_text_color="#1c2527",
        body_text_color_dark="#e7edec",
        body_text_color_subdued="#5b686b",
        body_text_color_subdued_dark="#9fb0b0",
        block_background_fill="#ffffff",
        block_background_fill_dark="#172224",
        block_border_color="#dfe3e0",
        block_border_color_dark="#2b3a3c",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        block_label_border_width="0px",
        block_label_text_color="#5b686b",
        block_label_text_color_dark="#9fb0b0",
        block_title_text_color="#39474a",
        block_title_text_color_dark="#c5d2d1",
        block_title_text_weight="560",
        input_background_fill="#fbfbf9",
        input_background_fill_dark="#111b1d",
        input_border_color="#cfd6d2",
        input_border_color_dark="#34464a",
        button_primary_background_fill="#0f766e",
        button_primary_background_fill_hover="#0d6059",
        button_primary_background_fill_dark="#4fc3b5",
        button_primary_background_fill_hover_dark="#6fd3c6",
        button_primary_text_color="#ffffff",
        button_primary_text_color_dark="#0b1618",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_hover="#eef3f1",
        button_secondary_background_fill_dark="#1d2a2d",
        button_secondary_background_fill_hover_dark="#26363a",
        button_secondary_border_color="#cfd6d2",
        button_secondary_border_color_dark="#34464a",
        slider_color="#0f766e",
        slider_color_dark="#4fc3b5",
        loader_color="#0f766e",
        loader_color_dark="#4fc3b5",
    )
