# Every target sets up what it needs in .venv; nothing else on the machine is touched but the user's caches.
# PYTHON chooses the interpreter (3.11 or newer) of a new .venv.

BIN := .venv/bin
RUNS := .venv/.runs
READY := .venv/.installed

.PHONY: help demo test test-kafka test-log test-scenarios test-others check soak bench wheels lock events pictures screenshots format clean

help:
	@echo "make demo    put messages, watch them arrive at listeners that fail and come back"
	@echo "make test    the tests, with a real Kafka"
	@echo "make check   formatting, lint, types, imports, words"
	@echo "make format  put the formatting right"
	@echo "make soak    the fault runs of minutes"
	@echo "make bench   how fast it is, beside its limits"
	@echo "make wheels  build a pure wheel, and one with compiled modules; needs a C compiler and Python's headers"
	@echo "make events  write docs/events.md from the code"
	@echo "make pictures  record the demo for README.md, and take the screenshots"
	@echo "make screenshots  take the pictures of the console for README.md and docs; needs Chromium"
	@echo "make lock    choose the newest dependencies and pin their hashes"
	@echo "make clean   remove .venv and the tools' caches"

demo: $(RUNS)
	$(BIN)/everput demo $(ARGS)

# Four runs of about the same length beside each other, for they mostly wait for the Kafka that each has of its own. The
# first is shown as it runs, the others' logs when all have ended. Ctrl-C reaches all four, and is waited for. What makes
# Kafka start quickly is made before: beside them it would get no processor.
test: $(READY)
ifdef ARGS
	$(BIN)/python -m pytest $(ARGS)
else
	$(BIN)/python -m broker.kafka.embedded.archive
	@trap : INT; $(MAKE) --silent --keep-going --jobs=4 test-kafka test-log test-scenarios test-others; status=$$?; \
	cat .venv/test-log.log .venv/test-scenarios.log .venv/test-others.log; exit $$status
endif

KAFKA := $(wildcard tests/kafka/test_[a-d]*.py) tests/scenarios/test_faults.py tests/stateful
LOG := $(filter-out $(KAFKA),$(wildcard tests/kafka/test_[e-z]*.py tests/scenarios/test_[ab]*.py)) \
	tests/samples tests/contracts tests/upgrades
OTHERS := tests/delivery tests/unit

test-kafka: $(READY)
	$(BIN)/python -m pytest $(KAFKA)

test-log: $(READY)
	$(BIN)/python -m pytest $(LOG) >.venv/$@.log 2>&1

test-scenarios: $(READY)
	$(BIN)/python -m pytest $(KAFKA:%=--ignore=%) $(LOG:%=--ignore=%) $(OTHERS:%=--ignore=%) >.venv/$@.log 2>&1

test-others: $(READY)
	$(BIN)/python -m pytest $(OTHERS) >.venv/$@.log 2>&1

check: $(READY)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.words

soak: $(READY)
	$(BIN)/python -m pytest -m slow $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

# From a copy of the sources, because mypyc leaves the compiled modules beside them.
WHEEL := $(BIN)/python -m pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation --wheel-dir dist
wheels: $(READY)
	@rm -rf .venv/wheels dist && mkdir .venv/wheels && cp -R pyproject.toml README.md LICENSE everput broker projections api cli .venv/wheels
	$(WHEEL) .venv/wheels
	HATCH_BUILD_HOOK_ENABLE_MYPYC=1 $(WHEEL) .venv/wheels
	@ls dist

events: $(READY)
	$(BIN)/everput events > docs/events.md
	$(BIN)/python -c "from broker.core.delivery import picture; print(picture(), end='')" > docs/delivery.md

pictures: $(READY) screenshots
	$(BIN)/python docs/pictures/recording.py docs/pictures/demo.svg

screenshots: $(READY)
	$(BIN)/python docs/pictures/screenshots.py docs/pictures

format: $(READY)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

# The stamp is older than a lock: install exactly what the lock says. RUNS is what Everput itself needs, and the project,
# editable. READY is what the tests need besides.
$(RUNS): requirements.lock requirements-build.lock pyproject.toml | .venv/bin/pip
	@echo "Installing Everput into .venv. This can take some minutes."
	@$(PIP) --require-hashes -r requirements.lock -r requirements-build.lock
	@$(PIP) --no-deps --no-build-isolation --editable .
	@touch $@

$(READY): requirements-dev.lock $(RUNS)
	@echo "Installing what the tests need into .venv. This can take some minutes."
	@$(PIP) --require-hashes -r requirements-dev.lock
	@touch $@

.venv/bin/pip:
	@for python in $(PYTHON) python3.14 python3.13 python3.12 python3 python3.11; do \
		if "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
			echo "Making .venv with $$("$$python" --version)"; \
			exec "$$python" -m venv .venv; \
		fi; \
	done; \
	echo "Python 3.11 or newer is needed; name it with make PYTHON=/path/to/python3" >&2; exit 1

# uv resolves for Linux and macOS and all supported versions of Python at once. It lives beside the environment.
UV := .venv/lock/bin/uv
COMPILE := $(UV) pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes \
	--custom-compile-command "make lock"

lock: | .venv/bin/pip
	@test -x $(UV) || { $(BIN)/python -m venv .venv/lock && .venv/lock/bin/pip install --quiet uv; }
	$(COMPILE) pyproject.toml --group dev --output-file requirements-dev.lock
	$(COMPILE) pyproject.toml --constraint requirements-dev.lock --output-file requirements.lock
	printf 'editables\nhatchling\n' | $(COMPILE) - --constraint requirements-dev.lock --output-file requirements-build.lock
	printf 'hatch-mypyc\nhatchling\nsetuptools\n' | $(COMPILE) - --constraint requirements-dev.lock \
		--output-file requirements-wheels.lock

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
