"""The Gradio interface: one module a page, pure rendering beside it, and the front-end files it mounts."""
