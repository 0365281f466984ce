# make test   everything that continuous integration checks (.ci/run calls it)
# make demo   the main job on a real adapter, explained as it goes
# make experiments  training: NOLA against LoRA, PRANC, VeRA and RandLoRA, task-space encoding; hours on two cores
# make bench  rate-distortion against the peers, speed on a 7B-shaped adapter, installed size; minutes, not tested
# make docs   docs/cli.md and docs/options.md, from the code
# make site   the documentation as a web site, in site/
# make lint   the checks without the tests
# make fuzz MINUTES=n  the package against the reference decoder, on random and on damaged files, for n minutes; then for n
#                      minutes all kinds of files that were changed at random
# make kernels  the compiled kernels, unless the library was made of the sources that are there
# make web    the reader in TypeScript, built and tested (make test does it where node is)
# make dist   a wheel and a source distribution, in dist/
# make clean  removes what the others made; .cache (base models) stays, `rm -r .cache` drops it too

# The checks start many processes, and each would compile the package again if the compiled files were not kept.
unexport PYTHONDONTWRITEBYTECODE

PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

MINUTES := 1

.PHONY: test lint fuzz kernels web docs dist site demo bench experiments clean
.DELETE_ON_ERROR:

test: lint kernels web
	$(BIN)/python -m pytest -n auto

lint: $(VENV)/dev.stamp
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

fuzz: kernels
	$(BIN)/python tools/fuzz_readers.py --minutes $(MINUTES)
	$(BIN)/python tools/fuzz/fuzz.py --minutes $(MINUTES)

# Compiles if a source differs from those of the library; without a C compiler it says so, and NumPy computes.
kernels: $(VENV)/dev.stamp
	$(BIN)/python tools/build_kernels.py

# The reader in TypeScript, built and tested, and its page for `nola-codec view`. Without node it says so, and the rest goes on.
web:
	@if command -v npm >/dev/null; then \
	$(MAKE) --no-print-directory web/node_modules/.stamp && npm --prefix web test && cp web/dist/reader.html nola_codec/viewer/; \
	else echo "make: no npm here, so the reader in web/ is not tested"; fi

web/node_modules/.stamp: web/package-lock.json
	npm --prefix web ci --no-audit --no-fund
	touch $@

docs: $(VENV)/dev.stamp
	$(BIN)/python tools/make_cli_docs.py

# A wheel and a source distribution, with the page of `nola-codec view`.
dist: $(VENV)/dev.stamp web
	$(BIN)/python -m hatchling build

site: $(VENV)/dev.stamp
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

demo: $(VENV)/dev.stamp
	$(BIN)/python tools/demo.py

bench: $(VENV)/bench.stamp
	$(BIN)/python tools/bench/rate_distortion.py
	$(BIN)/python tools/bench/speed_7b.py
	$(BIN)/python tools/bench/install_size.py

experiments: $(VENV)/bench.stamp
	$(BIN)/python tools/experiments/self_taught.py --plot docs/experiments/task_curve.svg
	$(BIN)/python tools/experiments/methods.py all
	$(BIN)/python tools/experiments/methods.py small
	$(BIN)/python tools/experiments/methods.py quantized
	$(BIN)/python tools/experiments/quantization.py
	$(BIN)/python tools/experiments/allotment.py
	$(BIN)/python tools/experiments/bleu.py
	$(BIN)/python tools/experiments/forms.py ranks
	$(BIN)/python tools/experiments/forms.py shared
	$(BIN)/python tools/experiments/forms.py bases
	$(BIN)/python tools/experiments/coverage.py
	$(BIN)/python tools/experiments/fashion_mnist.py
	$(BIN)/python tools/experiments/vit.py

clean:
	rm -rf $(VENV) demo site dist build web/dist web/build web/node_modules nola_codec/kernels/*.so nola_codec/viewer/reader.html .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find nola_codec tests tools spec -name __pycache__ -type d -prune -exec rm -rf {} +

# Installed anew only when the requirements change: make compares the stamp's date with theirs.
$(VENV)/dev.stamp: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) --editable '.[dev]'
	touch $@

# zipnn is built from source on the way: without a C compiler the benchmarks leave that row out.
$(VENV)/bench.stamp: $(VENV)/dev.stamp
	$(INSTALL) sacrebleu
	-$(INSTALL) zipnn
	touch $@
