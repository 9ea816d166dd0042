.PHONY: app test front browser benchmark world lint
app:
	python app.py
test:
	pytest
front: # the page's logic; needs Node 18 or later
	node --test tests/front/*.test.js
browser: # needs: pip install playwright, and Chromium
	pytest tests/browser
benchmark:
	python -m tests.benchmarks.compare
world: # hours on two cores; needs Node and: pip install resvg-py
	python -m aig.world all --preset cpu
lint: # needs: pip install -e .[lint]
	ruff check .
	ruff format --check .
	ty check aig
