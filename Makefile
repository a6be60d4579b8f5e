# The commands a person types. Each makes the virtual environment that it needs first.
PYTHON ?= python3
VENV = .venv
OLDEST = .venv-oldest
LMMS_EVAL = .venv-lmms-eval
VLLM = .venv-vllm
WEB = .venv-demo
ID ?= you/mqt-llava-tiny
RUN = OMP_NUM_THREADS=1 $(VENV)/bin/python
FUZZ = $(RUN) -m tests.fuzz
# Of `make fuzz`: how many calls, the most minutes, and what else tests/fuzz/__main__.py takes, such as `--seed 7`.
CALLS ?= 20000
MINUTES ?= 60
ARGS ?=

.PHONY: help demo demo-web test fuzz fuzz-planted test-browser test-oldest test-slow lint train-tiny evaluate-tiny figures heatmap-mass compare-report compare-quecc-report calibrate-tiny hub-tiny bench-convert bench-training-step bench-first-token bench-question-pass scaling-law test-lmms-eval test-vllm test-transformers bench-serving bench-gpu test-gpu test-torchao bench-cpu-settings bench-resampler quantized-tiny clean

help:  ## List the commands
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 24

demo: $(VENV)/.installed  ## Answer questions about real images with the embedded checkpoint at several budgets
	$(VENV)/bin/python examples/answer_at_budgets.py

demo-web: $(WEB)/.installed  ## Serve a web page to ask about pictures with a slider for the visual tokens
	$(WEB)/bin/python examples/demo.py

test: $(VENV)/.installed  ## Run the test suite
	$(RUN) -m pytest -m "not slow" -n 2

fuzz: $(VENV)/.installed  ## Compare 20,000 random calls with an oracle (a quarter of an hour); CALLS=, MINUTES=, ARGS="--seed 7"
	$(FUZZ) --calls $(CALLS) --minutes $(MINUTES) $(ARGS)

fuzz-planted: $(VENV)/.installed  ## Restore known bugs one by one, and see whether the fuzzer finds them
	$(FUZZ) --planted $(ARGS)

test-oldest: $(OLDEST)/.installed  ## Run the test suite with the oldest transformers that is supported
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -m "not slow" -n 2

test-slow: $(VENV)/.installed  ## Run the tests that take minutes
	$(RUN) -m pytest -m slow

test-gpu: $(VENV)/.installed  ## Run the tests that need a GPU; they skip where there is none, or no FlashAttention
	$(RUN) -m pytest -m gpu

test-torchao: $(VENV)/torchao  ## Run the tests of weights in 8 and 4 bits with torchao too
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/torchao $(VENV)/bin/python -m pytest tests/examples/test_quantized.py

test-lmms-eval: $(LMMS_EVAL)/.installed  ## Run the tests that need lmms-eval (minutes), in an environment of their own
	OMP_NUM_THREADS=1 $(LMMS_EVAL)/bin/python -m pytest -m lmms_eval tests/evaluation

test-vllm: $(VLLM)/.installed  ## Test serving with vLLM on a CPU (minutes)
	$(VLLM)/bin/python -m pytest -m vllm tests/serving

test-browser: $(WEB)/.installed  ## Test the web demo in Chromium, which must be there (a minute)
	OMP_NUM_THREADS=1 $(WEB)/bin/python -m pytest -m browser tests/examples/test_demo_browser.py

test-transformers: $(VENV)/suites  ## Run transformers' own suites over LLaVA and our models (minutes); SUITES=FOLDER holds them
	OMP_NUM_THREADS=1 PYTHONPATH=$(CURDIR)/$(VENV)/suites $(VENV)/bin/python -m tests.transformers_suites.run_suites $(SUITES)

lint: $(VENV)/.installed  ## Check style
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

# Threads that wait without spinning, so that the data worker finds a core.
train-tiny: $(VENV)/.installed  ## Train the embedded checkpoint again (an hour on two cores); goes on where it was stopped
	OMP_WAIT_POLICY=passive $(VENV)/bin/python examples/fashion_mosaics/train.py --output_dir runs/mqt-llava-tiny

evaluate-tiny: $(VENV)/.installed  ## Held-out accuracy of the embedded checkpoint by question kind and budget
	$(RUN) examples/fashion_mosaics/evaluate.py

calibrate-tiny: $(VENV)/.installed  ## Calibrate the embedded checkpoint's adaptive budget and judge it on other items
	$(RUN) examples/fashion_mosaics/adaptive.py --save --output model_cards/mqt-llava-tiny/adaptive.json \
		--figure docs/images/adaptive.png

figures: $(VENV)/.installed  ## Heatmaps, query maps and what more tokens change, for the documentation
	$(RUN) examples/explain.py --output docs/images/explain

heatmap-mass: $(VENV)/.installed  ## How much of a heatmap lies where the answer is (a minute)
	$(RUN) examples/fashion_mosaics/heatmap_mass.py --output benchmarks/results/heatmap_mass.json

compare-report: $(VENV)/.installed  ## Table and figure of one MQT model against QT models for each m, from logged results
	$(RUN) examples/fashion_mosaics/compare_report.py

compare-quecc-report: $(VENV)/.installed  ## Table and figure of QueCC against MQT, from logged results
	$(RUN) examples/fashion_mosaics/compare_quecc_report.py

hub-tiny: $(VENV)/.installed  ## Make the folder of the embedded checkpoint that goes to the Hub, e.g. ID=you/mqt-llava-tiny
	$(VENV)/bin/python model_cards/prepare_upload.py mqt-llava-tiny --repo-id $(ID) --output runs/hub/mqt-llava-tiny

scaling-law: $(VENV)/.installed  ## Fit the scaling law of parameters and visual tokens to the published scores
	$(RUN) examples/scaling_law/scaling_law_report.py

bench-convert: $(VENV)/.installed  ## Convert a synthetic 7B checkpoint and measure its memory (30 GB of disk)
	$(RUN) benchmarks/convert_7b.py

bench-training-step: $(VENV)/.installed  ## Measure a training step against LLaVA's (minutes on two cores)
	$(VENV)/bin/python benchmarks/training_step.py --size mid

bench-first-token: $(VENV)/.installed  ## Measure first tokens, image path and adaptive budgets against LLaVA's (minutes on two cores)
	$(VENV)/bin/python benchmarks/first_token.py --size full --output benchmarks/results/first_token.json

bench-question-pass: $(VENV)/.installed  ## Measure first tokens of QueCC against MQT at the same number of tokens (minutes on two cores)
	$(VENV)/bin/python benchmarks/question_pass.py --size full --output benchmarks/results/question_pass.json

bench-gpu: $(VENV)/.installed  ## Measure image path, prompt, first and further tokens against LLaVA's on a GPU (9 minutes)
	$(VENV)/bin/python benchmarks/gpu.py --output benchmarks/results

bench-cpu-settings: $(VENV)/.installed  ## Measure dtypes, kinds of attention and compilation on a CPU (ten minutes)
	$(VENV)/bin/python benchmarks/cpu_settings.py --size full --rounds 3 --output benchmarks/results/cpu_settings.json

bench-resampler: $(VENV)/.installed  ## Measure the query transformer's attention against torch's SDPA (two minutes)
	$(RUN) benchmarks/resampler_attention.py --output benchmarks/results/resampler_attention.json

quantized-tiny: $(VENV)/torchao  ## Held-out accuracy of the embedded checkpoint with its decoder in 8 and 4 bits (minutes)
	OMP_NUM_THREADS=1 PYTHONPATH=$(VENV)/torchao $(VENV)/bin/python examples/fashion_mosaics/quantized.py --output benchmarks/results/quantized.json

bench-serving: $(VLLM)/.installed  ## Measure 64 streaming requests at once by number of visual tokens, on a CPU (minutes)
	OMP_NUM_THREADS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_CPU_OMP_THREADS_BIND=nobind VLLM_LOGGING_LEVEL=WARNING \
		$(VLLM)/bin/python benchmarks/serving.py --output benchmarks/results/serving.json

$(VENV)/.installed: requirements.txt setup.py
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet -r requirements.txt
	$(VENV)/bin/pip install --quiet --no-deps -e .
	touch $@

# Beside the environment: wherever torchao is installed, transformers imports it, and it warns about its GPU kernels.
$(VENV)/torchao: $(VENV)/.installed
	rm -rf $@
	$(VENV)/bin/pip install --quiet --no-deps --target $@ torchao==0.18.0
	touch $@

# What transformers' tests import besides.
$(VENV)/suites: $(VENV)/.installed
	rm -rf $@
	$(VENV)/bin/pip install --quiet --target $@ parameterized==0.9.0 httpx==0.28.1
	touch $@

$(OLDEST)/.installed: requirements.txt setup.py
	$(PYTHON) -m venv $(OLDEST)
	sed 's/^transformers==.*/transformers==5.19.0/' requirements.txt > $(OLDEST)/requirements.txt
	$(OLDEST)/bin/pip install --quiet -r $(OLDEST)/requirements.txt
	$(OLDEST)/bin/pip install --quiet --no-deps -e .
	touch $@

# lmms-eval without what it asks for besides: torchvision, OpenCV, video decoders. What these tests use is in the file.
$(LMMS_EVAL)/.installed: requirements-lmms-eval.txt setup.py
	$(PYTHON) -m venv $(LMMS_EVAL)
	$(LMMS_EVAL)/bin/pip install --quiet -r requirements-lmms-eval.txt
	$(LMMS_EVAL)/bin/pip install --quiet --no-deps lmms-eval==0.7.3 -e .
	touch $@

# vLLM asks for torchvision, whose builds for GPUs fail on import beside a torch for CPUs. Nothing here needs it.
$(VLLM)/.installed: requirements-vllm.txt setup.py
	$(PYTHON) -m venv $(VLLM)
	$(VLLM)/bin/pip install --quiet -r requirements-vllm.txt
	$(VLLM)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM)/bin/pip install --quiet --no-deps -e .
	touch $@

# Gradio wants an older Pillow than the rest is tested with.
$(WEB)/.installed: requirements-demo.txt setup.py
	$(PYTHON) -m venv $(WEB)
	$(WEB)/bin/pip install --quiet -r requirements-demo.txt
	$(WEB)/bin/pip install --quiet --no-deps -e .
	touch $@

clean:
	rm -rf $(VENV) $(OLDEST) $(LMMS_EVAL) $(VLLM) $(WEB) runs build dist src/*.egg-info
