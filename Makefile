# The two commands of the README are `make bench` and `make test`; everything else serves them.
# Whatever is missing is installed: a virtual environment for the exporter, builds of ONNX Runtime from their wheels.

PYTHON ?= python3
CARGO ?= cargo
VENV := .venv
VENV_STAMP := $(VENV)/.installed
BIN := target/release/ortbench
EXPORT := PYTHONPATH=export_scripts $(VENV)/bin/python -m ortbench_export export
PACKAGES := models/packages
EXPORTER_SOURCES := $(shell find export_scripts/ortbench_export -name '*.py')

# Trained miniatures, one an architecture, and the precisions and flavours in which they are exported. Latent attention
# has a second form, a package of its own.
TINY := $(notdir $(patsubst %/config.json,%,$(wildcard models/*/config.json)))
TINY_PACKAGES := $(foreach precision,fp32 fp16 int8 int4,$(precision)-fused $(precision)-plain)
TINY_NAMES := $(TINY) $(patsubst %,%-absorbed,$(filter glm4%,$(TINY)))
TINY_MANIFESTS := $(foreach name,$(TINY_NAMES),$(TINY_PACKAGES:%=$(PACKAGES)/$(name)/%/manifest.json))

# Random weights enough that a budget below them makes packs evict, for tests; written in a second.
STREAMED_MANIFESTS := $(PACKAGES)/streamed/dense/int4-fused/manifest.json $(PACKAGES)/streamed/moe/int4-fused/manifest.json

# The reference models at full size, with random weights: 43 GB in all. Those of 30 billion weights in one flavour.
FULL_SHAPE := $(foreach name,qwen3-4b qwen3-vl-2b,$(name)/int4-fused $(name)/int4-plain) \
	qwen3-coder-30b-a3b/int4-fused glm-4.7-flash/int4-fused
FULL_SHAPE_MANIFESTS := $(FULL_SHAPE:%=$(PACKAGES)/full-shape/%/manifest.json)

# Networks of images, one ONNX file each, with random weights.
GRAPHS := $(PACKAGES)/graphs/resnet18.onnx $(PACKAGES)/graphs/resnet50.onnx

.PHONY: help bench gpu-check bench-full-shape bench-scoring bench-optimizations bench-streaming backend-suite graphs full-shape test test-rust test-python lint fmt build packages runtimes doctor clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 16

bench: build runtimes packages ## install what is missing, run benchmarks.yaml, print the comparison
	$(BIN) run benchmarks.yaml --allow-unsupported

gpu-check: build packages ## CUDA and TensorRT against the CPU, where there is a GPU and the runtime `cuda`
	scripts/gpu-check --binary $(BIN)

bench-full-shape: build runtimes full-shape ## the four models at full size (43 GB of disk, an hour)
	$(BIN) run benchmarks-full-shape.yaml --allow-unsupported

test: lint test-rust test-python ## every check and test, Rust and Python

build: ## the release binary
	$(CARGO) build --release --locked

runtimes: build $(VENV_STAMP) ## ONNX Runtime with the CPU and the OpenVINO provider
	@PYTHON=$(VENV)/bin/python $(BIN) runtime install cpu openvino

packages: $(TINY_MANIFESTS) ## export the trained miniatures to ONNX packages

bench-scoring: runtimes packages models/packages/full-shape/qwen3-4b/int4-fused/manifest.json ## batched scoring against one sequence after the other (half an hour)
	docs/measurements/scoring/measure.sh

bench-optimizations: build runtimes models/packages/full-shape/qwen3-4b/int4-fused/manifest.json models/packages/full-shape/qwen3-4b/int4-plain/manifest.json models/packages/full-shape/qwen3-coder-30b-a3b/int4-fused/manifest.json ## each optimization at full size (70 GB of disk, root, two hours)
	$(BIN) run benchmarks-optimizations.yaml --allow-unsupported

bench-streaming: build runtimes ## models larger than memory, beside mapping alone and llama.cpp (45 GB of disk, root, two hours)
	docs/measurements/streaming/measure.sh $(PWD)/results/streaming

backend-suite: build runtimes ## ONNX's own test cases as graphs, beside ONNX Runtime's Python interface (fifteen minutes)
	docs/measurements/graphs/backend-suite.sh $(PWD)/results/backend-suite

graphs: $(GRAPHS) ## residual networks with random weights, as graphs to measure

full-shape: $(FULL_SHAPE_MANIFESTS) ## export the four models at full size with random weights

doctor: build ## what this machine has and lacks
	@$(BIN) doctor

lint: $(VENV_STAMP)
	$(CARGO) fmt --check
	$(CARGO) clippy --all-targets --locked -- -D warnings
	$(VENV)/bin/ruff check export_scripts

# The integration tests run real models on both runtimes; the debug program that they run places them.
test-rust: packages $(STREAMED_MANIFESTS) ## Rust's unit and integration tests
	$(CARGO) build --locked
	@PYTHON=$(VENV)/bin/python target/debug/ortbench runtime install cpu openvino
	$(CARGO) test --locked

test-python: $(VENV_STAMP) packages ## the exporter's tests
	cd export_scripts && ../$(VENV)/bin/python -m pytest -q

fmt: $(VENV_STAMP) ## format everything
	$(CARGO) fmt
	$(VENV)/bin/ruff format export_scripts
	$(VENV)/bin/ruff check --fix export_scripts

clean: ## remove what was built here (runtimes stay in the cache folder)
	rm -rf target $(VENV) $(PACKAGES)

$(VENV_STAMP): export_scripts/requirements-test.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
		echo "error: $(PYTHON) is older than 3.10"; \
		echo "hint: name a newer one: make PYTHON=python3.12 ..."; exit 3; }
	@$(PYTHON) -m venv --clear $(VENV) || { \
		echo "error: $(PYTHON) cannot make a virtual environment"; \
		echo "hint: install its venv module (Debian: apt install python3-venv), or name another: make PYTHON=..."; exit 3; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --require-hashes -r $<
	@touch $@

# One folder a package; its manifest is written last, so it stands for the whole. The stem is NAME/PRECISION-FLAVOUR.
.SECONDEXPANSION:
name = $(patsubst %/,%,$(dir $*))
checkpoint = models/$(patsubst %-absorbed,%,$(name))
# Whatever the exporter reads of a checkpoint; how it was trained is no part of that.
read_files = $(filter-out %/training.json,$(wildcard $(addprefix $(checkpoint)/,*.safetensors *.json *.jinja)))
$(PACKAGES)/%/manifest.json: $(VENV_STAMP) $(EXPORTER_SOURCES) $$(read_files)
	@$(EXPORT) $(checkpoint) --output $(@D) --force --model-id $(name) \
		--precision $(firstword $(subst -, ,$(notdir $*))) --flavour $(lastword $(subst -, ,$(notdir $*))) \
		$(if $(filter %-absorbed,$(name)),--attention absorbed)
	@touch $@

# Of two rules that fit, make takes the one with the shorter stem. What exists is kept though the exporter changes: it is
# large. Scales that two bytes hold make packs a tenth smaller, without loss.
$(PACKAGES)/full-shape/%/manifest.json: | $(VENV_STAMP)
	$(EXPORT) --random-weights --config export_scripts/configs/$(name).json --output $(@D) --force --model-id $(name) \
		--scales fp16 \
		--precision $(firstword $(subst -, ,$(notdir $*))) --flavour $(lastword $(subst -, ,$(notdir $*)))

$(PACKAGES)/graphs/resnet%.onnx: export_scripts/networks/resnet.py $(VENV_STAMP)
	@$(VENV)/bin/python $< --depth $* --output $@

$(PACKAGES)/streamed/%/int4-fused/manifest.json: export_scripts/configs/streamed-%.json $(VENV_STAMP) $(EXPORTER_SOURCES)
	@$(EXPORT) --random-weights --config $< --output $(@D) --force --model-id streamed-$* \
		--precision int4 --flavour fused --scales fp16 --context-length 512
	@touch $@

# Those of full shape with their weights in shards, for less memory than they take; and as ONNX Runtime maps them by itself.
$(PACKAGES)/full-shape/%/int4-fused-pack/manifest.json: | build
	$(MAKE) $(PACKAGES)/full-shape/$*/int4-fused/manifest.json
	$(BIN) pack $(PACKAGES)/full-shape/$*/int4-fused --output $(@D) --force

$(PACKAGES)/full-shape/%/int4-fused-mapped/manifest.json: | $(VENV_STAMP)
	$(MAKE) $(PACKAGES)/full-shape/$*/int4-fused/manifest.json
	$(VENV)/bin/python docs/measurements/streaming/prepack.py $(PACKAGES)/full-shape/$*/int4-fused $(@D)
