"""What is around every page: the theme, the masthead, presenter mode, and how parts are mounted inside Gradio."""
