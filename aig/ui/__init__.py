"""The Gradio interface: the shell around every page, the parts that pages are made of, and a folder for each page."""
