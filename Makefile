# Espalier's commands. Each target's comment after ## is its line in `make help`.
#
# Any target that trains or configures takes options on the command line: make train LEARNING_RATE=1e-3 TRACKER=wandb

# OURS are the words that are only arguments of programs. What changes a result is an option of Kconfig. Both count only
# on make's command line: an environment variable with the name of such a word is ignored.
#
# Values of the command line never become part of a command or a rule. make exports them, recipes refer to them as
# "$$NAME", and make does not expand them. So quotes, spaces and $ arrive unchanged. Only ARGS is split at its spaces.
#
# Recipes use exec, so that the program replaces the shell: make sends a signal only to its direct child, and a shell in
# between would not forward it.
override OURS  := PYTHON RUN HOST PORT A B X DEFCONFIG RAND_SEED ARGS SWEEP JOBS REF FORMAT OUT CHECKPOINT MINUTES TITLE TASKS PERPLEXITY PUSH RUNS BY REFERENCE MARGIN DRY_RUN FRESH BASELINE SWEEP_TIME NPROC ENGINE GPUS_PER_RUN PARTITION SBATCH DETACH JOB FLAVOR JOB_TIME JOB_OWNER JOB_BUCKET TOKENS_PER_SECOND ID
override GIVEN := $(foreach v,$(.VARIABLES),$(if $(filter line,$(origin $v)),$v))

# Names do become parts of commands, so they may have only letters, digits and _. $(call without,text,characters)
override without = $(if $2,$(call without,$(subst $(firstword $2),,$1),$(wordlist 2,99,$2)),$1)
override PLAIN := A B C D E F G H I J K L M N O P Q R S T U V W X Y Z \
	a b c d e f g h i j k l m n o p q r s t u v w x y z 0 1 2 3 4 5 6 7 8 9 _
$(foreach v,$(GIVEN),$(if $(call without,$v,$(PLAIN)),$(error $v: a name may have only letters, digits and _)))
override UNUSED := $(filter environment%,$(origin PYTHON))
$(foreach v,$(filter-out $(GIVEN),$(OURS)),$(eval override undefine $v))
$(foreach v,$(GIVEN),$(eval override $v := $$(value $v))$(eval export $v))
override OVERRIDES := $(foreach v,$(filter-out $(OURS),$(GIVEN)),$v="$$$v")
override UNSET     := $(patsubst %,-u %,$(filter-out $(OURS),$(GIVEN)))
# The program that trains one run: several processes, or one on a cluster, are started by another one.
override GROUP   := $(filter NPROC ENGINE PARTITION SBATCH DETACH DRY_RUN,$(GIVEN))
override TRAINER  = $(if $(GROUP),scripts/processes.py $(if $(ENGINE),--engine="$$ENGINE") \
	$(if $(PARTITION),--partition="$$PARTITION") $(if $(SBATCH),--sbatch="$$SBATCH") $(if $(DETACH),--detach) \
	$(if $(DRY_RUN),--dry-run) "$${NPROC-1}",gpt2/train.py)
override ALONE    = $(if $(GROUP),echo "error: $(firstword $(GROUP)): make $@ has no such word; leave it out" >&2; exit 2;)

# The environment that PYTHON names is used unchanged. Otherwise .venv is used: it is created if it is missing, and
# updated if it is older than pyproject.toml. Two targets have their own environments.
override VENV := .venv
test-extras env-extras: override VENV := .venv-extras
audit env-audit: override VENV := .venv-audit
ifdef PYTHON
override ENVIRONMENTS :=
else
PYTHON = $(VENV)/bin/python
override ENVIRONMENTS := yes
endif
export PYTHON
# The first Python that is new enough. make looks for it only when it creates an environment. If there is none, python3
# is used, and scripts/environment.py prints an error.
override SYSTEM_PYTHON = $(or $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done),python3)

# Kconfiglib reads these variables. If the user set them for another project, they would change our configuration.
unexport CONFIG_ srctree

override CONFIG_PY := "$$PYTHON" scripts/config.py

.DEFAULT_GOAL := help
.PHONY: help menuconfig defconfig list-defconfigs olddefconfig savedefconfig listnewconfig diffconfig explain \
	checkconfig randconfig docs train sweep prune-report resume oneshot finetune shrink job jobs job-logs \
	job-cancel fetch evaluate export-model sample data runs show compare report tail export reproduce \
	dashboard sync tracker-doctor checkpoint-info machine check test test-extras audit torture fuzz bench bench-check lint \
	format clean mrproper

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

olddefconfig: env-config ## Update .config: new options get defaults, invalid settings are removed with a message
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

docs: env-config ## Generate docs/config.md from the Kconfig files
	@$(CONFIG_PY) docs > docs/config.md.tmp && mv docs/config.md.tmp docs/config.md

##@ Train

train: env-train env-configured ## Prepare the data if it is missing, and train: make train LEARNING_RATE=1e-3 (NPROC=4 ENGINE=ray)
	@exec "$$PYTHON" $(TRAINER) $(OVERRIDES)

prune-report: env-train env-configured ## Show before training what pruning will do, and its cost in memory and compute
	@exec "$$PYTHON" scripts/prune_report.py $(OVERRIDES)

resume: env-train ## Continue a run from its last checkpoint: make resume RUN=runs/name (default: the latest)
	@exec "$$PYTHON" $(TRAINER) --resume "$${RUN:-latest}" $(OVERRIDES)

sweep: env-sweep ## Compare configurations x seeds at equal budget: make sweep SWEEP=sweeps/pruning JOBS=2 (DRY_RUN=1 ENGINE=ray)
	@exec "$$PYTHON" scripts/sweep.py $(if $(SWEEP),"$$SWEEP") $(if $(NPROC),--nproc "$$NPROC") $(if $(JOBS),--jobs "$$JOBS") $(if $(DRY_RUN),--dry-run) \
		$(if $(SWEEP_TIME),--time "$$SWEEP_TIME") $(if $(FRESH),--fresh) $(if $(BASELINE),--baseline "$$BASELINE") \
		$(if $(ENGINE),--engine "$$ENGINE") $(if $(GPUS_PER_RUN),--gpus-per-run "$$GPUS_PER_RUN") \
		$(if $(PARTITION),--partition "$$PARTITION") $(if $(SBATCH),--sbatch="$$SBATCH") $(if $(DETACH),--detach) \
		$$ARGS $(OVERRIDES)

oneshot: env-train ## Prune a finished model: make oneshot RUN=... PRUNING_METHOD=sparsegpt TARGET_SPARSITY=0.5
	@$(ALONE) exec "$$PYTHON" scripts/oneshot.py $(if $(RUN),--run "$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") $(OVERRIDES)

finetune: env-train ## Fine-tune under the mask: make finetune RUN=... FINETUNE_RECIPE=sft FINETUNE_DATA=examples.jsonl (dpo, grpo)
	@$(ALONE) exec "$$PYTHON" scripts/finetune.py $(if $(RUN),--run "$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") $(OVERRIDES)

shrink: env-train ## Remove the pruned neurons and heads of a run, in a new and faster run: make shrink RUN=... (CHECKPOINT=best)
	@$(ALONE) exec "$$PYTHON" scripts/oneshot.py $(if $(RUN),--run "$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") \
		PRUNING_METHOD=shrink $(OVERRIDES)

job: env-train env-configured ## Train on a rented machine of Hugging Face: make job FLAVOR=a10g-large JOB_TIME=2h (DRY_RUN=1)
	@exec "$$PYTHON" scripts/job.py $(if $(JOB),--job="$$JOB") $(if $(FLAVOR),--flavor="$$FLAVOR") \
		$(if $(JOB_TIME),--time="$$JOB_TIME") $(if $(TOKENS_PER_SECOND),--tokens-per-second="$$TOKENS_PER_SECOND") \
		$(if $(JOB_OWNER),--owner="$$JOB_OWNER") $(if $(JOB_BUCKET),--bucket="$$JOB_BUCKET") $(if $(RUN),--run="$$RUN") \
		$(if $(SWEEP),--sweep="$$SWEEP") $(if $(DRY_RUN),--dry-run) $(if $(DETACH),--detach) \
		$(foreach v,$(filter NPROC JOBS GPUS_PER_RUN FRESH SWEEP_TIME BASELINE CHECKPOINT ENGINE PARTITION SBATCH ARGS,$(GIVEN)),--pass=$v="$$$v") \
		$(OVERRIDES)

evaluate: env-train ## Measure a model: make evaluate RUN=... TASKS=hellaswag,piqa (PERPLEXITY=wikitext2 CHECKPOINT=best)
	@exec "$$PYTHON" scripts/evaluate.py $(if $(RUN),--run "$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") \
		$(if $(filter TASKS,$(GIVEN)),--tasks "$$TASKS") $(if $(filter PERPLEXITY,$(GIVEN)),--perplexity "$$PERPLEXITY") \
		$(OVERRIDES)

export-model: env-train ## Write a Hugging Face folder: make export-model RUN=... (CHECKPOINT=best OUT=folder PUSH=user/name)
	@exec "$$PYTHON" scripts/export_model.py $(if $(RUN),"$$RUN") $(OVERRIDES) \
		$(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") $(if $(filter OUT,$(GIVEN)),--out "$$OUT") \
		$(if $(filter PUSH,$(GIVEN)),--push "$$PUSH") $$ARGS

data: env-train env-configured ## Download and tokenise the dataset
	@exec "$$PYTHON" gpt2/prepare_data.py $(OVERRIDES)

sample: env-train ## Continue a text with a trained model: make sample PROMPT='def ' (RUN=... CHECKPOINT=best)
	@exec "$$PYTHON" gpt2/sample.py $(if $(RUN),--run "$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT") $(OVERRIDES)

checkpoint-info: env-train ## Show and check what a run's checkpoints contain: make checkpoint-info RUN=...
	@exec "$$PYTHON" scripts/checkpoint_info.py $(if $(RUN),"$$RUN") $(if $(CHECKPOINT),--checkpoint "$$CHECKPOINT")

##@ Watch

runs: env-train ## List the runs: state, best validation loss, sparsity, speed, age
	@exec "$$PYTHON" scripts/runs.py list $(OVERRIDES) $$ARGS

show: env-train ## Show one run (configuration, metrics as sparklines, trackers): make show RUN=runs/name
	@exec "$$PYTHON" scripts/runs.py show $(if $(RUN),"$$RUN") $$ARGS

compare: env-train ## Show what differs between two runs: make compare A=runs/one B=runs/two
	@exec "$$PYTHON" scripts/runs.py compare "$$A" "$$B" $$ARGS

report: env-report ## Say what came of a sweep, as a page: make report SWEEP=sweeps/pruning (or RUNS='runs/a runs/b' BY=...)
	@exec "$$PYTHON" scripts/report.py $(if $(SWEEP),"$$SWEEP") $(if $(filter RUNS,$(GIVEN)),--runs "$$RUNS") \
		$(if $(BY),--by "$$BY") $(if $(REFERENCE),--reference "$$REFERENCE") $(if $(MARGIN),--margin "$$MARGIN") \
		$(if $(filter OUT,$(GIVEN)),--out "$$OUT") $$ARGS $(OVERRIDES)

tail: env-train ## Follow a run until it ends: make tail RUN=runs/name (ARGS=--wait: until it is finished)
	@exec "$$PYTHON" scripts/runs.py tail $(if $(RUN),"$$RUN") $$ARGS

jobs: env-train ## List the jobs on rented machines (JOB_OWNER=organisation)
	@exec "$$PYTHON" scripts/jobs.py list $(if $(JOB_OWNER),--owner="$$JOB_OWNER")

job-logs: env-train ## Follow a job until it ends: make job-logs ID=...
	@exec "$$PYTHON" scripts/jobs.py logs $(if $(ID),--id="$$ID") $(if $(JOB_OWNER),--owner="$$JOB_OWNER")

job-cancel: env-train ## Cancel a job: make job-cancel ID=...
	@exec "$$PYTHON" scripts/jobs.py cancel $(if $(ID),--id="$$ID") $(if $(JOB_OWNER),--owner="$$JOB_OWNER")

fetch: env-train ## Bring home what the jobs of a run wrote: make fetch RUN=runs/name
	@exec "$$PYTHON" scripts/jobs.py fetch $(if $(RUN),--run="$$RUN") $(if $(JOB_OWNER),--owner="$$JOB_OWNER") \
		$(if $(JOB_BUCKET),--bucket="$$JOB_BUCKET")

export: env-train ## Write a run's metrics as a table: make export RUN=runs/name FORMAT=csv (parquet, json; OUT=file)
	@exec "$$PYTHON" scripts/runs.py export $(if $(RUN),"$$RUN") $(if $(filter FORMAT,$(GIVEN)),--format "$$FORMAT") \
		$(if $(filter OUT,$(GIVEN)),--out "$$OUT") $$ARGS

reproduce: env-train ## Train a run again from its own code, and check that it is bit-identical: make reproduce RUN=...
	@exec "$$PYTHON" scripts/reproduce.py $(if $(RUN),"$$RUN") $$ARGS

dashboard: env-train ## Open Trackio's dashboard on a run's project: make dashboard (RUN=... PORT=... HOST=...)
	@exec "$$PYTHON" scripts/dashboard.py $(if $(RUN),"$$RUN") $(if $(filter HOST,$(GIVEN)),--host "$$HOST") \
		$(if $(PORT),--port "$$PORT")

sync: env-train ## Send the missing rows of a run to its trackers: make sync RUN=runs/name TRACKER=trackio
	@exec "$$PYTHON" scripts/sync.py $(if $(RUN),"$$RUN") $(if $(filter TRACKER,$(GIVEN)),--tracker "$$TRACKER")

tracker-doctor: env-train ## Check each tracker: versions, paths, keys, network
	@exec "$$PYTHON" scripts/tracker_doctor.py $(if $(filter TRACKER,$(GIVEN)),"$$TRACKER") $$ARGS

machine: env-train ## Show this machine as a run would use it: rates, busy cores, the kernels for .config
	@exec "$$PYTHON" scripts/machine.py $(OVERRIDES) $$ARGS

##@ Develop

check: lint ## Run before each commit: the linter, and the quick tests (no process is started, nothing is trained)
	@exec "$$PYTHON" -m pytest -n 3 --dist worksteal --quick $$ARGS

test: env-test ## Run the tests; those that need an optional package are skipped by name
	@exec "$$PYTHON" -m pytest -n 3 --dist worksteal -rs $$ARGS

test-extras: env-extras ## Run the tests that need an optional package; installs all of them into .venv-extras
	@exec "$$PYTHON" -m pytest -n 3 --dist worksteal -rs --extras $$ARGS

bench: env-train ## Measure speed on this machine; compared with nanoGPT: make bench REF=path/to/nanoGPT
	@exec "$$PYTHON" bench/run.py $(if $(REF),--ref "$$REF") $$ARGS

bench-check: env-train ## Measure, and fail if a ratio is more than 10 % worse than in bench/results.json
	@exec "$$PYTHON" bench/run.py --check $(if $(REF),--ref "$$REF") $$ARGS

torture: env-test ## Kill, resume and compare runs of every optimizer x pruning method: make torture MINUTES=60
	@exec "$$PYTHON" tests/torture.py $(if $(MINUTES),--minutes "$$MINUTES") $$ARGS

fuzz: env-test ## Feed damaged and random input to every parser: make fuzz MINUTES=10
	@exec "$$PYTHON" tests/fuzz.py $(if $(MINUTES),--minutes "$$MINUTES") $$ARGS

audit: env-audit ## Look for known vulnerabilities of every pinned package, with pip-audit
	@pins=$$("$$PYTHON" scripts/environment.py pins) && [ -n "$$pins" ] && printf '%s\n' "$$pins" | \
		"$$PYTHON" -m pip_audit --strict --no-deps --disable-pip --requirement /dev/stdin $$ARGS

lint: env-test ## Check style and format
	@"$$PYTHON" -m ruff check . && "$$PYTHON" -m ruff format --check .

format: env-test ## Apply the format
	@"$$PYTHON" -m ruff check --fix . && "$$PYTHON" -m ruff format .

clean: ## Remove caches; data and runs stay
	@find . -name __pycache__ -not -path './.venv*' -type d -prune -exec rm -r {} +
	@rm -rf .pytest_cache .ruff_cache .hypothesis

mrproper: clean ## Also remove .config and the environments; data and runs stay
	@rm -rf .config .config.old defconfig .venv .venv-extras .venv-audit

help: ## List all targets
	@awk -f scripts/help.awk $(firstword $(MAKEFILE_LIST)) || [ $$? -gt 128 ] # ignores SIGPIPE, as from `make help | head`

# ---- environments ---------------------------------------------------------------------------------------------------
# Configuring needs one small package, training several hundred megabytes. Each level is installed when it is first
# needed.

.PHONY: env-config env-train env-report env-sweep env-test env-extras env-audit env-configured
env-config env-train env-report env-sweep env-test: env-%: $(if $(ENVIRONMENTS),.venv/.%)
env-extras: $(if $(ENVIRONMENTS),.venv-extras/.extras)
env-audit: $(if $(ENVIRONMENTS),.venv-audit/.audit)
env-config env-train env-report env-sweep env-test env-extras env-audit: env-%:
ifndef ENVIRONMENTS
	@command -v "$$PYTHON" >/dev/null || { echo "error: PYTHON=$$PYTHON: there is no such program" >&2; exit 2; }
	@"$$PYTHON" scripts/environment.py check $*
endif

.venv/.config .venv-extras/.extras .venv-audit/.audit: pyproject.toml
.venv/.train .venv/.report .venv/.sweep .venv/.test: .venv/.config
.venv/.config .venv/.train .venv/.report .venv/.sweep .venv/.test .venv-extras/.extras .venv-audit/.audit:
	$(if $(UNUSED),@echo "note: PYTHON of the environment is not used; make TARGET PYTHON=... uses your own environment")
	@"$(SYSTEM_PYTHON)" scripts/environment.py install $(subst .,,$(@F)) $(@D)

env-configured: env-config
	@[ -e "$${KCONFIG_CONFIG:-.config}" ] || env $(UNSET) $(CONFIG_PY) defconfig
