"""The one theme of the app: every colour is a custom property declared for light and dark in ``theme.css``."""

from __future__ import annotations

import gradio as gr
from markupsafe import Markup

from aig.ui.markup import fill, source
from aig.ui.shell import front

STYLES = (
    "shell/theme.css", "shell/masthead.css", "compare/page.css", "parts/stage.css", "parts/player.css", "parts/relay.css",
    "parts/curve.css", "parts/viewer.css", "shell/presenter.css", "compare/presenter.css",
)  # fmt: skip

# System stacks only: the page must look the same without any network.
SANS = ("Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "Helvetica Neue", "sans-serif")
MONO = ("ui-monospace", "SF Mono", "Cascadia Mono", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace")

_COLOURS = {
    "body_text_color": "var(--ink)",
    "body_text_color_subdued": "var(--soft)",
    "background_fill_primary": "var(--panel)",
    "background_fill_secondary": "var(--field)",
    "border_color_primary": "var(--line)",
    "border_color_accent": "var(--focus)",
    "border_color_accent_subdued": "var(--line)",
    "color_accent_soft": "var(--field)",
    "block_background_fill": "transparent",
    "block_border_color": "transparent",
    "block_info_text_color": "var(--soft)",
    "block_title_text_color": "var(--soft)",
    "block_label_text_color": "var(--soft)",
    "panel_background_fill": "transparent",
    "input_background_fill": "var(--field)",
    "input_background_fill_focus": "var(--panel)",
    "input_border_color": "var(--line)",
    "input_border_color_focus": "var(--focus)",
    "input_placeholder_color": "var(--soft)",
    "slider_color": "var(--accent)",
    "checkbox_background_color": "var(--field)",
    "checkbox_background_color_selected": "var(--accent)",
    "checkbox_border_color": "var(--edge)",
    "checkbox_border_color_selected": "var(--accent)",
    "checkbox_label_background_fill": "transparent",
    "checkbox_label_background_fill_hover": "var(--field)",
    "checkbox_label_background_fill_selected": "var(--ink)",
    "checkbox_label_border_color": "var(--line)",
    "checkbox_label_text_color": "var(--ink)",
    "checkbox_label_text_color_selected": "var(--panel)",
    "button_primary_background_fill": "var(--accent)",
    "button_primary_background_fill_hover": "var(--accent-hover)",
    "button_primary_border_color": "transparent",
    "button_primary_text_color": "var(--on-accent)",
    "button_secondary_background_fill": "var(--field)",
    "button_secondary_background_fill_hover": "var(--line)",
    "button_secondary_border_color": "var(--line)",
    "button_secondary_text_color": "var(--ink)",
    "loader_color": "var(--accent)",
}


def theme() -> gr.themes.Base:
    """A flat, quiet theme: hairlines instead of boxes, one accent, the same variables in light and dark."""
    base = gr.themes.Base(
        font=SANS,
        font_mono=MONO,
        text_size=gr.themes.sizes.text_md,
        spacing_size=gr.themes.sizes.spacing_sm,
        radius_size=gr.themes.sizes.radius_md,
    )
    return base.set(
        **_COLOURS,
        **{f"{name}_dark": value for name, value in _COLOURS.items()},
        body_background_fill="#f3f1ec",  # written out, because they are painted before theme.css arrives
        body_background_fill_dark="#0e1115",
        block_border_width="0px",
        block_shadow="none",
        block_padding="0px",
        block_label_shadow="none",
        block_title_text_size="*text_sm",
        block_title_text_weight="500",
        block_info_text_size="*text_xs",
        form_gap_width="0px",
        layout_gap="12px",
        button_large_padding="10px 18px",
        button_transform_hover="none",
        button_transform_active="none",
    )


def head() -> str:
    """The app's own styles and modules, for launch's ``head``: its ``css`` would prefix the selectors and drop @container."""
    values = {
        "modules": [name for name in front.MODULES if name != front.ENTRY],
        "entry": front.ENTRY,
        "place": front.PLACE,
        "styles": [Markup((front.FOLDER / style).read_text()) for style in STYLES],
    }
    return str(fill("shell/head.html", values))


def masthead() -> gr.HTML:
    """The line above every page: the mark, the name, presenter mode and the switch between light and dark."""
    return front.part("masthead", source("shell/masthead.html"))
