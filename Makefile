# `make run` and `make test` set everything up on a machine with python3, venv, pip, gcc and make.
PYTHON ?= python3
BIN := .venv/bin
# Paths are relative, so a checkout in a folder with spaces works.

# Packages of Debian that tests marked `system` need: a browser, an RTSP server, an MQTT broker.
SYSTEM := chromium gir1.2-gst-rtsp-server-1.0 gstreamer1.0-plugins-good mosquitto openssl python3-gi
FIND_MISSING = missing=; for name in $(SYSTEM); do \
	dpkg-query -W -f '$${Status}' $$name 2> /dev/null | grep -q ' installed' || missing="$$missing $$name"; done

.PHONY: run demo test test-system coverage check bench docs format clean

run: .venv/.installed
	$(BIN)/python train.py $(ARGS)

# A page in the browser; ARGS="RUN --port 8600" begins with a finished run.
demo: .venv/.installed
	$(BIN)/oddpatch demo $(ARGS)

# worksteal: tests of a file mostly share a process, and with it the runs that the file fits once.
test: .venv/.installed
	$(BIN)/python -m pytest -n auto --dist worksteal $(ARGS)

# Installs what is missing where it may, and says what is missing where it may not: tests that need it are skipped.
test-system: .venv/.installed
	@$(FIND_MISSING); if [ -n "$$missing" ] && [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	apt-get update -qq; DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $$missing; fi; true
	@$(FIND_MISSING); [ -z "$$missing" ] || echo "missing, so that tests are skipped: apt-get install$$missing" >&2
	$(BIN)/python -m pytest -m system -rs $(ARGS)

coverage: .venv/.installed
	rm -f .coverage .coverage.*
	$(BIN)/python -m pytest -n auto --dist worksteal -m "not system" --cov --cov-report=term-missing:skip-covered $(ARGS)

check: .venv/.installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# benchmarks/RESULTS.md; for a part: make bench ARGS="--only padim".
bench: .venv/.installed
	$(BIN)/python benchmarks/run.py $(ARGS)

# Into build/site; stops at a link that leads nowhere and at a page that no menu names.
docs: .venv/.installed
	$(BIN)/mkdocs build

format: .venv/.installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Installed once, and again when what is to be installed changes.
.venv/.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt uv
	$(BIN)/python -m uv pip install --quiet --compile-bytecode --python $(BIN)/python --constraint constraints.txt --editable ".[dev]"
	touch .venv/.installed

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .mypy_cache .ruff_cache .coverage .coverage.*
