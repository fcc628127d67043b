# Every task of this project by name. Azure DevOps, the rehearsal and people call these same targets.
SHELL       := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS   += --no-builtin-rules --no-print-directory
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

ifneq ($(filter 3.%,$(MAKE_VERSION)),)
$(error GNU make 4 or newer is needed, this is $(MAKE_VERSION); on macOS: brew install make, then call gmake)
endif

VARIABLES := PYTHON VENV DATA ROWS OUT PARAMETERS MODEL_NAME RUN_EVALUATION ALLOW_RUN_CANCEL BUILD_BUILDID PORT SERVICE \
  PIPELINE FAULT CONNECTION PRODUCTION AML_TRAINING_NODES STAGE BASE NODES

# make X=... wins over the environment, the environment over these. What is empty counts as not given.
$(foreach name,$(VARIABLES),$(if $(value $(name)),,$(eval override undefine $(name))))
PYTHON         ?=
VENV           ?= .venv
DATA           ?=
ROWS           ?= 100000
OUT            ?= outputs
PARAMETERS     ?= training/parameters.json
MODEL_NAME     ?= safe_driver_model
RUN_EVALUATION ?= false
ALLOW_RUN_CANCEL ?= true
BUILD_BUILDID  ?=
PORT           ?= 5001
SERVICE        ?= local
PIPELINE       ?= devops/ci.yml
FAULT          ?=
CONNECTION     ?= federated
PRODUCTION     ?= none
AML_TRAINING_NODES ?= 1
STAGE          ?=
BASE           ?= origin/master
NODES          ?= 1

# Whoever queues a build sets some of them: a value is text, in which $ and quotes mean nothing to make or the shell.
define newline


endef
# The agent obeys ##vso[ in what make shows of a recipe.
signs := \#\#
plain = $(if $(findstring $(newline),$(value $(1))),$(error $(1) has a line break: give it on one line))$(if $(findstring \
  $(signs),$(value $(1))),$(error $(1) has $(signs) in it, which an agent takes for a command: use another name))$(subst \
  $(newline),,$(subst $(newline)~/,$(value HOME)/,$(newline)$(value $(1))))
$(foreach name,$(VARIABLES),$(eval $(if $(filter file,$(origin $(name))),,export )override $(name) := $$(call plain,$(name))))
# As one word of a shell command.
given = '$(subst ','\'',$($(1)))'

# These become names of targets, in which such signs mean something to make.
SIGNS := & ' " ` ; : $$ \# * ? [ ] < > | \ % = ~ ! { } ^ ( )
$(foreach name,OUT VENV MODEL_NAME,$(if $(filter-out 1,$(words x$($(name))x))$(filter -%,$($(name)))$(strip \
  $(foreach sign,$(SIGNS),$(findstring $(sign),$($(name))))),$(error $(name) is '$($(name))': make cannot handle blanks in it, \
  - at its beginning, or any of $(SIGNS); use a path or name without them)))

# Another project's modules, another Python's folders, -O, the repository of a git hook: not for what is run here.
unexport $(filter-out PYTHON,$(filter PYTHON%,$(.VARIABLES))) GIT_DIR GIT_WORK_TREE GIT_INDEX_FILE GIT_OBJECT_DIRECTORY
export PYTHONUTF8 := 1

# The first Python that answers runs the set-up, which then finds or fetches the right one; looked for once, when needed.
SYSTEM_PYTHON = $(eval SYSTEM_PYTHON := $(or $(shell for p in python3 python python3.11 python3.10 python3.12 python3.13; do \
  $$p -Ec '' 2>/dev/null && { echo $$p; break; }; done),$(if $(shell command -v uv),uv run --no-project python)))$(SYSTEM_PYTHON)
ANY_PYTHON  = $(or $(SYSTEM_PYTHON),$(error No Python found. 3.11 is best; 3.10, 3.12 and 3.13 do for one machine. Install uv \
  (https://docs.astral.sh/uv), which fetches it, or: apt-get install python3 python3-venv; brew install python@3.11))

# LOCAL: all that the one-machine path needs; FULL: with the Azure SDK (700 MB) as well.
ifeq ($(PYTHON),)
  PY    := $(VENV)/bin/python
  LOCAL := $(VENV)/.local
  FULL  := $(VENV)/.full
  # The interpreter that it was made with may be gone.
  $(LOCAL): $(shell $(PY) -Ec '' 2>/dev/null || echo FORCE)
else
  PY    := $(call given,PYTHON)
  LOCAL := $(OUT)/.make/python-local
  FULL  := $(OUT)/.make/python-full
endif

SAMPLE       := $(if $(DATA),,$(OUT)/data/safe_driver.csv)
TABLE        := $(or $(DATA),$(SAMPLE))
MODEL        := $(addprefix $(OUT)/model/,model.txt metrics.json report.html profile.json)
DECISION     := $(OUT)/decision.json
REGISTRATION := $(OUT)/registration.json
# Scripts write a result whole or not at all: a failure or Ctrl-C takes none away.
.PRECIOUS: $(OUT)/data/safe_driver.csv $(MODEL) $(DECISION) $(REGISTRATION)
REGISTERED   := $(wildcard $(foreach number,[1-9] [1-9][0-9] [1-9][0-9][0-9] [1-9][0-9][0-9][0-9], \
  $(OUT)/registry/$(MODEL_NAME)/$(number)/tags.json))
TESTRESULTS  := $(OUT)/test-results
COVERAGE      := $(addprefix --cov=,training scoring scripts)
# A core each for the tests, where the interpreter has pytest-xdist. Not simply expanded: $(PY) may not be there yet.
XDIST        = $(shell $(PY) -Ec 'import xdist' 2>/dev/null && echo '-n auto --dist loadfile')

##@ One machine: no account, no Azure SDK

.PHONY: help setup data train evaluate register retrain serve smoke-test monitor
help: ## This list
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-15s %s\n",$$1,$$2} /^##@/{print "\n" substr($$0,5)}' $(MAKEFILE_LIST)
setup: $(FULL) ## Build .venv from conda_dependencies.yml, Azure SDK included
data: $(SAMPLE) ## Make the sample table of ROWS rows (default 100000), unless DATA is given
train: $(MODEL) ## DATA to model.txt, metrics.json, report.html and profile.json in OUT/model; NODES=3 processes share it
evaluate: $(DECISION) ## Challenger against the registered champion; RUN_EVALUATION=false skips the comparison
register: $(REGISTRATION) ## Register the model in OUT/registry if the decision says so
retrain: $(REGISTRATION) ## train, evaluate, register
	@cat $(REGISTRATION)
serve: $(LOCAL) $(if $(REGISTERED),,$(REGISTRATION)) ## Serve the registered model on PORT with Azure ML's inference server
	$(PY) scripts/serve.py --registry $(OUT)/registry --model-name $(MODEL_NAME) --port $(call given,PORT) --log $(OUT)/serve.log
smoke-test: $(if $(filter local,$(SERVICE)),$(LOCAL),$(FULL)) ## Real requests to SERVICE=local (make serve), aci or endpoint; only tests
	$(PY) scripts/smoke_test.py --service $(call given,SERVICE) --out $(OUT) --model-name $(MODEL_NAME) --port $(call given,PORT)
monitor: $(if $(filter local,$(SERVICE)),$(LOCAL),$(FULL)) ## Requests, failures, durations and scores of the last hours; fails past limits
	$(PY) scripts/monitor.py --service $(call given,SERVICE) --out $(OUT) --model-name $(MODEL_NAME)

##@ Code quality

.PHONY: lint test compare end-to-end bench bench-training bench-scoring
lint: $(LOCAL) ## pycodestyle over all Python; findings on the screen and in OUT/test-results/lint.xml
	$(PY) scripts/lint.py --junit $(TESTRESULTS)/lint.xml
test: $(FULL) | $(TESTRESULTS) ## Unit tests with coverage; OUT/test-results/unit.xml and OUT/coverage.xml
	$(PY) -m pytest tests -m "not end_to_end" $(XDIST) --junitxml=$(TESTRESULTS)/unit.xml $(COVERAGE) --cov-report=xml:$(OUT)/coverage.xml
compare: $(LOCAL) $(SAMPLE) ## Train as in BASE (a commit) and as here, on one table, and say what changed
	$(PY) scripts/compare.py --base $(call given,BASE) --data $(call given,TABLE) --out $(OUT)
end-to-end: $(FULL) | $(TESTRESULTS) ## The slower tests: whole paths, real servers, the real SDK against loopback Azure ML
	$(PY) -m pytest tests -m end_to_end $(subst loadfile,worksteal,$(XDIST)) --junitxml=$(TESTRESULTS)/end_to_end.xml
bench: bench-training bench-scoring ## Both benchmarks; tables and pictures in OUT/bench
bench-training: $(LOCAL) ## Training against the challenge's reference script, on more rows, on several nodes
	$(PY) scripts/bench_training.py --out $(OUT)/bench
	$(PY) scripts/bench_growth.py --out $(OUT)/bench
bench-scoring: $(LOCAL) $(if $(REGISTERED),,$(REGISTRATION)) ## Scoring: the registered model, score.py against other scripts on the same server
	$(PY) scripts/bench_scoring.py --registry $(OUT)/registry --model-name $(MODEL_NAME) --out $(OUT)/bench

##@ Azure ML: settings from the environment, ids as JSON in OUT

.PHONY: preflight workspace dataset publish run cancel-run deploy rollback
preflight: $(FULL) ## Say which setting, sign-in, permission or resource is missing; changes nothing
	$(PY) scripts/preflight.py
workspace: $(FULL) ## Create or get the workspace, the compute cluster and the environments
	$(PY) scripts/preflight.py --before-workspace
	$(PY) scripts/workspace.py
dataset: $(FULL) $(SAMPLE) ## Check and upload DATA and register it as a new dataset version
	$(PY) scripts/dataset.py --data $(call given,TABLE)
publish: $(FULL) ## Publish the training pipeline; writes OUT/pipeline.json
	$(PY) scripts/publish.py --out $(OUT)
run: $(FULL) ## Run the published pipeline and wait for it; writes OUT/run.json
	$(PY) scripts/run.py --out $(OUT)
cancel-run: $(FULL) ## Cancel the run of this build
	$(PY) scripts/cancel_run.py
deploy: $(FULL) ## Deploy to ACI; writes OUT/service.json. SERVICE=endpoint: to production; writes OUT/endpoint.json
	$(PY) scripts/deploy.py --service $(call given,SERVICE) --out $(OUT)
rollback: $(FULL) ## Put back the model version that the service, or SERVICE=endpoint, ran before
	$(PY) scripts/rollback.py --service $(call given,SERVICE) --out $(OUT)

##@ Azure DevOps

.PHONY: summary rehearse branch-policy devops-project
summary: $(LOCAL) ## What came of STAGE (code_quality, compare, train, deploy or production) in Markdown, for the run's page
	$(PY) scripts/summary.py --stage $(call given,STAGE) --out $(OUT)
rehearse: $(FULL) ## All stages of devops/ on this machine, no account; FAULT= (see README), PIPELINE=, PRODUCTION=endpoint
	$(PY) devops/rehearsal/rehearse.py --pipeline $(call given,PIPELINE) --out $(OUT)/rehearsal \
	  --connection $(call given,CONNECTION) --production $(call given,PRODUCTION) \
	  --training-nodes $(call given,AML_TRAINING_NODES) $(if $(FAULT),--fault $(call given,FAULT))
branch-policy: $(LOCAL) ## Create or update the branch policies; DRY_RUN=1 only shows the difference
	$(PY) scripts/branch_policy.py
devops-project: $(LOCAL) ## Set up pipelines, variable group, environments, permissions and policies; DRY_RUN=1
	$(PY) scripts/devops_project.py

##@ This folder

.PHONY: lock clean FORCE
lock: ## Solve the lists of packages into devops/locks, with uv; prints what changed
	$(ANY_PYTHON) scripts/lock.py
# Only names that make writes: OUT and the folders in it may hold other things, and these stay.
RESULTS := .make data/safe_driver.csv data/.safe_driver.csv.* $(addprefix model/,model.txt metrics.json report.html profile.json .*.new) \
  decision.json registration.json .*.json.*.new test-results/*.xml coverage.xml summary/*.md serve.log serve.log.1 .serve \
  compare $(addsuffix .json,pipeline submitted run service endpoint smoke_test monitor) report.html comparison.html monitor.png \
  bench/training.* bench/growth.* bench/scoring.* bench/scoring $(patsubst $(OUT)/%/THIS-IS-A-REHEARSAL,%,$(wildcard $(OUT)/*/THIS-IS-A-REHEARSAL))
clean: ## Remove what make made, the registry excepted
	rm -rf .venv .container .pytest_cache .coverage devops/locks/.new-* $(addprefix $(OUT)/,$(RESULTS))
	@rmdir $(addprefix $(OUT)/,data model test-results summary bench) 2>/dev/null || true
	find training scoring scripts devops tests -name __pycache__ -prune -exec rm -rf {} +
	@test ! -e $(OUT)/registry || echo 'kept $(OUT)/registry'

# What is local and costly is a file, so that it is made again only when something that it depends on changed.

$(VENV)/.local $(VENV)/.full: conda_dependencies.yml devops/openhack_requirements.txt $(wildcard devops/locks/*.txt) \
    scripts/build_venv.py scripts/dependencies.py
	$(ANY_PYTHON) scripts/build_venv.py --part $(@:$(VENV)/.%=%) --venv $(VENV)
$(VENV)/.full: $(VENV)/.local

$(OUT)/.make/python-%: FORCE
	@[ "$$($(PY) -c 'import sys; print(sys.version_info >= (3, 7))' 2>&1)" = True ] || { \
	  echo error: PYTHON is $(PY), and no Python 3.7 or newer answers there: name one, or leave it out >&2; exit 1; }
	@$(PY) scripts/build_venv.py --part $* --check --stamp $@

# A value that a result depends on is kept in a file, which changes only when the value does, or the file that it names:
# a name that is given may hold what no prerequisite may.
VALUES = $(addprefix $(OUT)/.make/,$(1))
$(OUT)/.make/rows:           VALUE = $(call given,ROWS)
$(OUT)/.make/table:          VALUE = $(if $(DATA),"$$($(ANY_PYTHON) training/table.py --parts --data $(call given,DATA))")
$(OUT)/.make/parameters:     VALUE = $(call given,PARAMETERS)
$(OUT)/.make/nodes:          VALUE = $(call given,NODES)
$(OUT)/.make/run-evaluation: VALUE = $(call given,RUN_EVALUATION)' '$(call given,ALLOW_RUN_CANCEL)
$(OUT)/.make/model-name:     VALUE = $(MODEL_NAME)
$(OUT)/.make/build:          VALUE = $(call given,BUILD_BUILDID)
$(OUT)/.make/training-pins:  VALUE = "$$($(ANY_PYTHON) scripts/dependencies.py --tag training)"
$(call VALUES,rows table parameters nodes run-evaluation model-name build training-pins): FORCE
	@mkdir -p $(@D); value=$(VALUE); [[ ! $$value -nt $@ ]] && cmp -s $@ - <<< "$$value" || printf '%s\n' "$$value" > $@

TABLE_CODE := training/table.py training/nodes.py training/tracking.py training/console.py training/columns.json
MODEL_CODE := $(TABLE_CODE) training/parameters.py training/lightgbm_names.json training/metrics.py training/drift.py \
  training/report.py training/report_page.html

$(OUT)/data/safe_driver.csv: training/sample.py training/tracking.py $(TABLE_CODE) $(call VALUES,rows) | $(LOCAL)
	$(PY) training/sample.py --rows $(call given,ROWS) --out $@

$(MODEL) &: training/train.py $(MODEL_CODE) $(SAMPLE) $(call VALUES,table parameters nodes training-pins) | $(LOCAL)
	$(PY) training/train.py --data $(call given,TABLE) --parameters $(call given,PARAMETERS) --nodes $(call given,NODES) --out $(OUT)/model

$(DECISION): training/evaluate.py training/comparison.py training/comparison_page.html $(MODEL_CODE) $(MODEL) \
    $(call VALUES,run-evaluation model-name) | $(LOCAL)
	$(PY) training/evaluate.py --data $(call given,TABLE) --parameters $(call given,PARAMETERS) --model $(OUT)/model --model-name $(MODEL_NAME) \
	  --registry $(OUT)/registry --run-evaluation $(call given,RUN_EVALUATION) \
	  --allow-run-cancel $(call given,ALLOW_RUN_CANCEL) --nodes $(call given,NODES) --out $@

# A registry that was removed by hand is filled again.
$(REGISTRATION): training/register.py training/tracking.py $(DECISION) $(call VALUES,build) $(if $(REGISTERED),,FORCE) | $(LOCAL)
	$(PY) training/register.py --model $(OUT)/model --decision $(DECISION) --model-name $(MODEL_NAME) \
	  --registry $(OUT)/registry --build-id $(call given,BUILD_BUILDID) --out $@

$(TESTRESULTS):
	mkdir -p $@
