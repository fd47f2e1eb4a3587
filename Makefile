# `make up` talks and `make test` tests: both set up what they need first, and a second run skips what is there.
#   make up ARGS="--model-workers 2 --vocoder-workers 3"        make up PYTHON=python3.12        make test ARGS="-k vocoder"
#   make bench ARGS="growth --plot growth.png"
PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/pip install --disable-pip-version-check --constraint constraints.txt
SYSTEM := sh deploy/system-packages.sh
export TOKENIZERS_PARALLELISM = false

.PHONY: up test check install weights fairseq bench clean

up: weights
	$(BIN)/omni up $(ARGS)

install: .venv/.installed
	@$(SYSTEM) ffmpeg=ffmpeg

weights: install
	$(BIN)/omni fetch

test: .venv/.test weights
	@$(SYSTEM) chromium=chromium espeak-ng=espeak-ng npm=npm redis-check-rdb=redis-tools  # the last: Redis without its service
	$(BIN)/pytest $(ARGS)

check: .venv/.test
	$(BIN)/ruff check
	$(BIN)/mypy omni bench examples
	$(BIN)/shellcheck .ci/run deploy/*.sh recipes/*.sh
	$(BIN)/yamllint --strict --config-file deploy/yamllint.yaml deploy
	$(BIN)/check-jsonschema --builtin-schema vendor.compose-spec deploy/compose.yaml
	$(BIN)/hadolint --config deploy/hadolint.yaml deploy/Containerfile
	$(BIN)/pytest tests/deploy  # systemd's own check of the units, Kubernetes' and Serve's schemas

fairseq: .venv/.test  # the optional backend, and the test that it gives the same waveform as ours; builds with a C++ compiler
	$(PIP) --editable '.[fairseq]'
	$(PIP) --no-deps fairseq==0.12.2

bench: install
	$(BIN)/omni bench $(or $(ARGS),turn)

.venv/.installed: setup.cfg constraints.txt
	@$(SYSTEM) $(PYTHON)=python3
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "omni needs Python 3.11 or newer: make PYTHON=python3.12")'
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || $(SYSTEM) --always python3-venv
	test -x $(BIN)/pip || $(PYTHON) -m venv --clear .venv
	$(PIP) torch==2.13.0  # first and alone: a later resolve then keeps it
	$(PIP) --editable .
	@touch $@

.venv/.test: .venv/.installed
	$(PIP) --editable '.[test,train,bench]'
	$(PIP) --no-deps openai-whisper==20250625 distillmos==0.9.1 xls-r-sqa==0.1.0  # without triton and torchaudio, never run
	@touch $@

clean:
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
