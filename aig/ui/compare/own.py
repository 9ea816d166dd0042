"""The form for a model of one's own: a base model and what was tuned from it, from the Hub or the operator's folder."""

from __future__ import annotations

import gradio as gr

from aig.published import offers, presets

LABELS = {
    "pipeline": "Pipeline",
    "base": "Base model",
    "base_revision": "Base revision",
    "kind": "Tuned as",
    "tuned": "Tuned model",
    "revision": "Tuned revision",
    "weight_name": "LoRA file",
    "subfolder": "Subfolder",
}
HINTS = {"base": "owner/name, or ./folder", "tuned": "owner/name, or ./folder", "base_revision": "main", "revision": "main",
         "weight_name": "pytorch_lora_weights.safetensors"}  # fmt: skip
LISTS = {"pipeline": presets.PIPELINES, "kind": presets.WEIGHTS}


def form(*, visible: bool) -> tuple[list[gr.components.Component], gr.Button]:
    """The fields, in the order of ``offers.FORM``, and the button that uses them."""
    fields = []
    with gr.Accordion("A model of your own", open=False, visible=visible, elem_id="own"):
        for name in offers.FORM:
            if name in LISTS:
                fields.append(gr.Dropdown(list(LISTS[name]), value=LISTS[name][0], label=LABELS[name]))
            else:
                fields.append(gr.Textbox(label=LABELS[name], placeholder=HINTS.get(name), max_lines=1))
        button = gr.Button("Use this model", elem_id="use")
    return fields, button
