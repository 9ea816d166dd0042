// The colours of some of the page.
() => ["body", "h1", ".stage h2", ".arm"].map((name) => getComputedStyle(document.querySelector(name))).map((style) => style.color + style.backgroundColor)
