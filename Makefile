# Each target does all the set-up it needs, in a virtual environment inside this folder. `make help` lists them.
PYTHON ?= python3
VENV ?= .venv
# What is installed: exact versions with hashes, the same in every clone. `make lock` renews the files.
LOCK ?= requirements/locked.txt
READY = $(VENV)/.fggp-installed
# What makes the site, installed beside it. Its versions are chosen to change none of the others.
SITE_READY = $(VENV)/.site-installed

# The oldest versions that are promised, in an environment of their own.
OLDEST_PYTHON ?= python3.10
OLDEST = VENV=.venv-oldest PYTHON=$(OLDEST_PYTHON) LOCK=requirements/oldest.txt

PARALLEL = -n auto --dist loadfile --no-loadscope-reorder --ignore tests/deploy

MINUTES ?= 60

.PHONY: help demo test test-slow test-oldest lint format fuzz lock picture notebooks site benchmark faults sanitize deploy runtime web wheels windows-python clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

demo: $(READY)  ## a tour of a few minutes, offline
	$(VENV)/bin/fggp demo

test: $(READY)  ## the tests, on all cores, but those of `make test-slow` and `make deploy`
	$(VENV)/bin/pytest $(PARALLEL) -m "not slow"

test-slow: $(READY)  ## the tests with several processes, whole networks or other people's stacks
	$(VENV)/bin/pytest $(PARALLEL) -m slow

test-oldest:  ## the library's and the runtime's tests on the oldest versions that are promised; not those of reading ONNX
	$(MAKE) $(OLDEST) .venv-oldest/.fggp-installed
	.venv-oldest/bin/pytest $(PARALLEL) --ignore tests/lab --ignore tests/faults --ignore tests/ship/from_onnx

lint: $(READY)  ## linter, formatter, types, import contracts
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports
	cd runtime && $(abspath $(VENV))/bin/mypy

format: $(READY)  ## mend what the linter and the formatter can
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

fuzz: $(READY)  ## property tests with new examples, for MINUTES=60
	@end=$$(( $$(date +%s) + 60 * $(MINUTES) )); round=0; while [ $$(date +%s) -lt $$end ]; do \
		round=$$((round + 1)); echo "round $$round"; \
		HYPOTHESIS_PROFILE=fuzz $(VENV)/bin/pytest -q -n auto -m hypothesis -p no:cacheprovider || exit 1; \
	done; echo "$$round rounds, nothing found"

lock: $(READY)  ## resolve all requirements anew: the newest versions, and the oldest that pyproject.toml allows
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--extra all --custom-compile-command 'make lock' pyproject.toml -o requirements/locked.txt
	$(VENV)/bin/uv pip compile --quiet --upgrade --resolution lowest-direct --python-version 3.10 --generate-hashes \
		--no-annotate --extra lab --extra onnx --extra dev --custom-compile-command 'make lock' pyproject.toml \
		-o requirements/oldest.txt
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--extra test --custom-compile-command 'make lock' runtime/pyproject.toml -o requirements/runtime.txt
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' web/requirements.in -o requirements/web.txt
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate \
		--constraints requirements/locked.txt --custom-compile-command 'make lock' docs/requirements.in \
		-o requirements/site.txt
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' requirements/wheels.in -o requirements/wheels.txt
	$(VENV)/bin/uv pip compile --quiet --upgrade --universal --python-version 3.10 --generate-hashes --no-annotate \
		--custom-compile-command 'make lock' requirements/windows.in -o requirements/windows.txt

picture: $(READY)  ## the pictures of docs/architecture.md and docs/concepts.md, drawn from the code
	$(VENV)/bin/python tools/draw_architecture.py
	$(VENV)/bin/python tools/draw_concepts.py

notebooks: $(SITE_READY)  ## run the notebooks, and store what they show
	cd docs/notebooks && OMP_NUM_THREADS=1 $(abspath $(VENV))/bin/jupyter-execute --inplace *.ipynb

# All pages anew, because Sphinx warns of a page only when it reads it.
site: $(SITE_READY)  ## the documentation as a website, build/site/index.html; needs Python 3.11
	rm -rf build/site
	$(VENV)/bin/sphinx-build --quiet --fresh-env --fail-on-warning --keep-going -d build/site-trees docs build/site

benchmark: $(READY)  ## one mask update beside other tools
	$(VENV)/bin/python benchmarks/update.py

faults: $(READY)  ## kill runs, damage their files, fill their disk: docs/faults.md
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/faults/harness.py \
		--page docs/faults.md --records results/faults/faults.ndjson

# The C++ library's tests with a library that checks its own memory accesses and arithmetic. An interpreter that was built
# without the checks needs their libraries loaded before anything else; its own leaks at exit are not looked for.
sanitize: $(READY)  ## the C++ library's tests with checked memory accesses and arithmetic
	cmake -S . -B build/sanitize -DFGGP_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug
	cmake --build build/sanitize --parallel
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		FGGP_TEST_KERNELS=build/sanitize FGGP_TEST_LIBRARY=build/sanitize/libfggp_generic.so HYPOTHESIS_EXAMPLES=25 \
		$(VENV)/bin/pytest -p no:cacheprovider tests/network tests/selection/test_native_passes.py \
		tests/selection/test_all_finite.py tests/masks/test_zeroing.py \
		tests/acceleration/test_sparse_products.py tests/acceleration/test_batch_norm_kernels.py

# Compilers and emulators that are not installed are left out, and named.
deploy: runtime $(READY)  ## the library without PyTorch, tried as users would: in C, on other processors, from Python
	$(VENV)/bin/pytest tests/deploy

# An environment of its own, which has NumPy and no PyTorch.
runtime: $(READY)  ## fggp-runtime: its wheel, and its tests without PyTorch
	rm -rf build/wheels
	$(VENV)/bin/pip wheel --quiet --disable-pip-version-check --no-deps --no-build-isolation -w build/wheels ./runtime
	[ -x .venv-runtime/bin/pip ] || $(PYTHON) -m venv .venv-runtime
	.venv-runtime/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/runtime.txt
	.venv-runtime/bin/pip install --quiet --disable-pip-version-check --no-deps --force-reinstall build/wheels/*.whl
	mkdir -p build/networks
	$(VENV)/bin/python tests/deploy/network_files.py build/networks
	FGGP_NETWORKS=build/networks .venv-runtime/bin/pytest runtime

# By Zig's Clang, pinned, so that the committed module can be made again. npm packs it, where npm is installed.
web:  ## libfggp for browsers and Node: web/fggp.wasm, compiled anew, and its npm package
	[ -x .venv-web/bin/pip ] || $(PYTHON) -m venv .venv-web
	.venv-web/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/web.txt
	PATH="$(abspath .venv-web/bin):$$PATH" cmake -G Ninja -S . -B build/web -DCMAKE_TOOLCHAIN_FILE=cmake/wasm.cmake \
		-DZIG="$$(.venv-web/bin/python -c 'import ziglang; print(*ziglang.__path__)')"
	PATH="$(abspath .venv-web/bin):$$PATH" cmake --build build/web --parallel
	if command -v npm >/dev/null; then cd build && npm pack --silent ../web; fi

# By Zig's Clang, which compiles for every system on any: docs/releasing.md.
wheels:  ## dist/: wheels of fggp and fggp-runtime, built and checked here; what has been tried of them: docs/releasing.md
	[ -x .venv-wheels/bin/pip ] || $(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/wheels.txt
	rm -rf dist
	.venv-wheels/bin/python tools/build_wheels.py

windows-python:  ## build/windows-python: a Python for Windows with NumPy, in which Wine runs fggp-runtime's tests
	[ -x .venv-wheels/bin/pip ] || $(PYTHON) -m venv .venv-wheels
	.venv-wheels/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/wheels.txt
	.venv-wheels/bin/python tools/windows_python.py

# The last line but one: without a compiler fggp is installed without its kernels, and nothing here should run so.
$(READY): $(LOCK) pyproject.toml CMakeLists.txt
	$(PYTHON) -m venv $(VENV)
	@echo "installing fggp with everything needed to run and test it (PyTorch is large: a few minutes)"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCK)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	$(VENV)/bin/python -c "from fggp import native; native.load()"
	touch $@

$(SITE_READY): $(READY) requirements/site.txt
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r requirements/site.txt
	touch $@

clean:  ## remove what the other targets made
	rm -rf .venv .venv-oldest .venv-runtime .venv-web .venv-wheels build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
