# Each target does all the set-up it needs, in a virtual environment inside this folder.
PYTHON ?= python3
VENV ?= .venv
READY = $(VENV)/.fggp-installed

.PHONY: demo test lint format benchmark faults sanitize clean

demo: $(READY)
	$(VENV)/bin/fggp demo

test: $(READY)
	$(VENV)/bin/pytest

lint: $(READY)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/mypy

format: $(READY)
	$(VENV)/bin/ruff check --fix
	$(VENV)/bin/ruff format

benchmark: $(READY)
	$(VENV)/bin/python benchmarks/update.py

# Kills training runs, damages their files and fills their disk; see docs/faults.md.
faults: $(READY)
	OMP_NUM_THREADS=1 $(VENV)/bin/python tests/faults/harness.py \
		--page docs/faults.md --records results/faults/faults.ndjson

# The kernels' tests with kernels that check their own memory accesses and arithmetic. An interpreter that was built
# without the checks needs their libraries loaded before anything else; its own leaks at exit are not looked for.
sanitize: $(READY)
	cmake -S . -B build/sanitize -DFGGP_SANITIZE=ON -DCMAKE_BUILD_TYPE=Debug
	cmake --build build/sanitize --parallel
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libubsan.so)" \
		ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
		FGGP_TEST_KERNELS=build/sanitize HYPOTHESIS_EXAMPLES=25 \
		$(VENV)/bin/pytest -p no:cacheprovider tests/ship/test_kernels.py tests/test_kernel_passes.py tests/test_kernel_more.py

$(READY): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	@echo "installing fggp with everything needed to run and test it (PyTorch is large: a few minutes)"
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --editable '.[all]'
	touch $@

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
