# Espalier's commands. Each target's comment after ## is its line in `make help`.
#
# Options are set on the command line of any target that trains or configures: make train LEARNING_RATE=1e-3 TRACKER=wandb

# Nothing that is given to make becomes a part of a command or a rule: make exports it, recipes name it as "$$NAME", and
# make expands none of it. So quotes, spaces and a price of $5 arrive as they are. ARGS is words, divided at spaces.
#
# Programs take the shell's place (exec): make hands a signal on to its child alone, and a shell between would keep it.
override OURS  := PYTHON RUN HOST PORT A B X DEFCONFIG RAND_SEED ARGS SWEEP JOBS REF FORMAT OUT CHECKPOINT MINUTES TITLE
override GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter line,$(origin $v)),$v))

# Names are parts of commands, so they are plain ones. $(call without,text,characters)
override without = $(if $2,$(call without,$(subst $(firstword $2),,$1),$(wordlist 2,99,$2)),$1)
override PLAIN := A B C D E F G H I J K L M N O P Q R S T U V W X Y Z \
	a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 _
$(foreach v,$(GIVEN),$(if $(call without,$v,$(PLAIN)),$(error $v: a name has letters, digits and _ alone)))
$(foreach v,$(sort $(GIVEN) $(OURS) TRACKER),$(if $(filter-out undefined,$(origin $v)),\
	$(eval override $v := $$(value $v))$(eval export $v)))
override OVERRIDES := $(foreach v,$(filter-out $(OURS),$(GIVEN)),$v="$$$v")

override VENV := .venv
# An environment of your own, used as it is; else .venv, made when it is missing or older than pyproject.toml.
ifdef PYTHON
override ENVIRONMENTS :=
else
PYTHON := $(VENV)/bin/python
override ENVIRONMENTS := yes
endif
export PYTHON
# The first Python that is new enough; evaluated only where .venv is made, which also says so when there is none.
override SYSTEM_PYTHON = $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done),python3)

# Kconfiglib reads these from the environment; set for another project, they would redirect ours.
unexport CONFIG_ srctree

override CONFIG_PY := "$$PYTHON" scripts/config.py

.DEFAULT_GOAL := help
.PHONY: help menuconfig defconfig list-defconfigs olddefconfig savedefconfig listnewconfig diffconfig explain \
	checkconfig randconfig docs train sweep prune-report resume sample data runs show compare tail export reproduce \
	dashboard sync tracker-doctor checkpoint-info test audit torture fuzz bench bench-check lint format clean mrproper

##@ Configure

menuconfig: env-config env-configured ## Choose every option in a menu; writes .config
	@exec "$$PYTHON" scripts/menuconfig.py

defconfig: env-config ## Write the default .config (gpt2_tiny)
	@$(CONFIG_PY) defconfig $(OVERRIDES)

%_defconfig: export PRESET = $*
%_defconfig: env-config ## Write .config from a preset: make gpt2_shakespeare_defconfig
	@$(CONFIG_PY) defconfig "$$PRESET" $(OVERRIDES)

list-defconfigs: env-config ## List the presets
	@$(CONFIG_PY) list-defconfigs

olddefconfig: env-config ## Bring .config up to date: new options get defaults, what no longer fits is dropped aloud
	@$(CONFIG_PY) olddefconfig $(OVERRIDES)

savedefconfig: env-config ## Save what differs from the defaults: DEFCONFIG=defconfigs/mine_defconfig TITLE='my preset'
	@$(CONFIG_PY) savedefconfig $(if $(DEFCONFIG),"$$DEFCONFIG") $(if $(filter TITLE,$(GIVEN)),--title="$$TITLE")

listnewconfig: env-config ## List the options that .config does not mention
	@$(CONFIG_PY) listnewconfig

diffconfig: env-config ## Compare two configurations or runs: make diffconfig A=runs/one B=runs/two
	@$(CONFIG_PY) diffconfig "$$A" "$$B"

explain: env-config ## Explain an option and its value: make explain X=LEARNING_RATE
	@$(CONFIG_PY) explain "$$X"

checkconfig: env-config ## Check .config (and NAME=value words) without training
	@$(CONFIG_PY) checkconfig $(OVERRIDES)

randconfig: env-config ## Write a random valid .config: make randconfig RAND_SEED=1
	@$(CONFIG_PY) randconfig $(if $(RAND_SEED),"$$RAND_SEED") $(OVERRIDES)

docs: env-config ## Write docs/config.md anew from the Kconfig files
	@$(CONFIG_PY) docs > docs/config.md.tmp && mv docs/config.md.tmp docs/config.md

##@ Train

train: env-train env-configured ## Prepare the data if it is missing, and train: make train LEARNING_RATE=1e-3
	@exec "$$PYTHON" gpt2/train.py $(OVERRIDES)

prune-report: env-train env-configured ## Say before training what pruning will do, and its cost in memory and work
	@exec "$$PYTHON" scripts/prune_report.py $(OVERRIDES)

resume: env-train ## Continue a run from its last checkpoint: make resume RUN=runs/name (default: the latest)
	@exec "$$PYTHON" gpt2/train.py --resume "$${RUN:-latest}" $(OVERRIDES)

sweep: env-train ## Compare configurations x seeds at equal budget: make sweep SWEEP=sweeps/pruning JOBS=2
	@exec "$$PYTHON" scripts/sweep.py "$$SWEEP" $(if $(JOBS),--jobs "$$JOBS") $$ARGS $(OVERRIDES)

data: env-train env-configured ## Download and tokenise the dataset
	@exec "$$PYTHON" gpt2/prepare_data.py $(OVERRIDES)

sample: env-train ## Continue a text with a trained model: make sample PROMPT='def ' (RUN=... CHECKPOINT=best)
	@exec "$$PYTHON" gpt2/sample.py $(if $(RUN),--run "$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") $(OVERRIDES)

checkpoint-info: env-train ## Say what is in a run's checkpoints, and whether they are whole: make checkpoint-info RUN=...
	@exec "$$PYTHON" scripts/checkpoint_info.py $(if $(RUN),"$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT")

##@ Watch

runs: env-train ## List the runs: state, best validation loss, sparsity, speed, age
	@exec "$$PYTHON" scripts/runs.py list $(OVERRIDES) $$ARGS

show: env-train ## Show one run: its configuration, metrics as sparklines, trackers: make show RUN=runs/name
	@exec "$$PYTHON" scripts/runs.py show $(if $(RUN),"$$RUN") $$ARGS

compare: env-train ## Say what differs between two runs: make compare A=runs/one B=runs/two
	@exec "$$PYTHON" scripts/runs.py compare "$$A" "$$B" $$ARGS

tail: env-train ## Follow a run until it ends: make tail RUN=runs/name (ARGS=--wait: also its resume)
	@exec "$$PYTHON" scripts/runs.py tail $(if $(RUN),"$$RUN") $$ARGS

export: env-train ## Write a run's metrics as a table: make export RUN=runs/name FORMAT=csv (parquet, json; OUT=file)
	@exec "$$PYTHON" scripts/runs.py export $(if $(RUN),"$$RUN") $(if $(filter FORMAT,$(GIVEN)),--format "$$FORMAT") \
		$(if $(filter OUT,$(GIVEN)),--out "$$OUT") $$ARGS

reproduce: env-train ## Train a run again from its own code, and say whether it is bit-identical: make reproduce RUN=...
	@exec "$$PYTHON" scripts/reproduce.py $(if $(RUN),"$$RUN") $$ARGS

dashboard: env-train ## Open Trackio's dashboard on a run's project: make dashboard (RUN=... PORT=... HOST=...)
	@exec "$$PYTHON" scripts/dashboard.py $(if $(RUN),"$$RUN") $(if $(filter HOST,$(GIVEN)),--host "$$HOST") \
		$(if $(PORT),--port "$$PORT")

sync: env-train ## Deliver to the trackers what they lack of a run: make sync RUN=runs/name TRACKER=trackio
	@exec "$$PYTHON" scripts/sync.py $(if $(RUN),"$$RUN") $(if $(TRACKER),--tracker "$$TRACKER")

tracker-doctor: env-train ## Say what each tracker has and lacks: versions, paths, keys, network
	@exec "$$PYTHON" scripts/tracker_doctor.py $(if $(TRACKER),"$$TRACKER") $$ARGS

##@ Develop

test: env-test ## Run the test suite
	@exec "$$PYTHON" -m pytest -n 2 --dist worksteal $$ARGS

bench: env-train ## Measure what this machine makes of it; beside nanoGPT: make bench REF=path/to/nanoGPT
	@exec "$$PYTHON" bench/run.py $(if $(REF),--ref "$$REF") $$ARGS

bench-check: env-train ## The same, and fail where a ratio is 10 % worse than in docs/performance.md
	@exec "$$PYTHON" bench/run.py --check $(if $(REF),--ref "$$REF") $$ARGS

torture: env-test ## Kill, resume and compare runs of every optimizer x pruning method: make torture MINUTES=60
	@exec "$$PYTHON" tests/torture.py $(if $(MINUTES),--minutes "$$MINUTES") $$ARGS

fuzz: env-test ## Feed damaged and random input to everything that reads: make fuzz MINUTES=10
	@exec "$$PYTHON" tests/fuzz.py $(if $(MINUTES),--minutes "$$MINUTES") $$ARGS

audit: env-audit ## Ask the PyPI advisory database about every pinned package
	@exec "$$PYTHON" scripts/audit.py $$ARGS

lint: env-test ## Check style and format
	@"$$PYTHON" -m ruff check . && "$$PYTHON" -m ruff format --check .

format: env-test ## Apply the format
	@"$$PYTHON" -m ruff check --fix . && "$$PYTHON" -m ruff format .

clean: ## Remove caches; data and runs stay
	@find . -name __pycache__ -not -path './$(VENV)/*' -type d -prune -exec rm -r {} +
	@rm -rf .pytest_cache .ruff_cache .hypothesis

mrproper: clean ## Also remove .config and .venv; data and runs stay
	@rm -rf .config .config.old defconfig $(VENV)

help: ## Show this
	@awk -f scripts/help.awk $(firstword $(MAKEFILE_LIST)) || [ $$? -gt 128 ] # its reader went away

# ---- environments ---------------------------------------------------------------------------------------------------
# Configuring needs one small package, training some hundred megabytes: each level is installed when it is first needed.

.PHONY: env-config env-train env-test env-audit env-configured
env-config env-train env-test env-audit: env-%: $(if $(ENVIRONMENTS),$(VENV)/.%)
ifndef ENVIRONMENTS
	@command -v "$$PYTHON" >/dev/null || { echo "error: PYTHON=$$PYTHON: there is no such program" >&2; exit 2; }
	@"$$PYTHON" scripts/environment.py check $*
endif

$(VENV)/.config: pyproject.toml
$(VENV)/.train $(VENV)/.test $(VENV)/.audit: $(VENV)/.config
$(VENV)/.config $(VENV)/.train $(VENV)/.test $(VENV)/.audit: $(VENV)/.%:
	@"$(SYSTEM_PYTHON)" scripts/environment.py install $* $(VENV)

env-configured: env-config
	@[ -e "$${KCONFIG_CONFIG:-.config}" ] || $(CONFIG_PY) defconfig
