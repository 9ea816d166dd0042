"""Parts of pages: HTML, CSS and JavaScript that need only an element and a host, and the Python that fills or mounts them."""
