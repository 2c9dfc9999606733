# `make demo` and `make test` are all a new user needs; both install into .venv first, the demo without
# the tools of the tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: install demo docs test test-fast lint bench playground-kernels clean

install: $(VENV)/.installed

$(VENV)/.package: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "fasttrain needs Python 3.11 or newer; name one with: make PYTHON=python3.12 $(MAKECMDGOALS)"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed: $(VENV)/.package
	$(BIN)/pip install --quiet -c constraints.txt -e '.[test]'
	@touch $@

demo: $(VENV)/.package
	$(BIN)/fasttrain demo

# A worker for each of two cores, and each file in one worker, so that what it shares is made once.
PYTEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: install
	$(PYTEST) $(PYTEST_ARGS)

test-fast: install
	$(PYTEST) -m "not slow" $(PYTEST_ARGS)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site of docs/, in build/site.
docs: $(VENV)/.package
	$(BIN)/pip install --quiet -c constraints.txt -e '.[docs]'
	$(BIN)/mkdocs build --quiet --strict

bench: install
	$(BIN)/python -m benchmarks.aot

# The operators of the playground's page; needs clang and lld. The result is committed.
WEB := fasttrain/sampling/playground/web
playground-kernels:
	clang --target=wasm32 -O3 -msimd128 -nostdlib -ffreestanding -fno-builtin -Wall -Wl,--no-entry \
	  -Wl,--allow-undefined -Wl,--import-memory -Wl,--strip-all -Wl,-z,stack-size=65536 \
	  -o $(WEB)/kernels.wasm $(WEB)/kernels.c
	cd $(WEB) && sha256sum kernels.c > kernels.sha256

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
