"""What each option matters to: every option is in exactly one group, and the answers are those that were decided."""

from collections import Counter

from lib.config import matters
from lib.config.kconf import Schema

SCHEMA = Schema()


def members(name):
    return matters.names(SCHEMA, lambda group: group is matters.GROUPS[name])


def test_every_option_is_in_exactly_one_group():
    groups = matters.GROUPS.values()
    named = Counter(name for group in groups for name in group.options)
    menus = Counter(menu for group in groups for menu in group.menus)
    assert set(named.values()) == set(menus.values()) == {1}
    assert named.keys() <= SCHEMA.options.keys()
    assert menus.keys() == {option.menu[0] for option in SCHEMA.options.values()}
    assert sum(len(members(name)) for name in matters.GROUPS) == len(SCHEMA.options)
    assert all(members(name) for name in matters.GROUPS)


def test_a_resumed_run_keeps_what_it_is():
    kept = matters.names(SCHEMA, lambda group: group.on_resume == matters.KEPT)
    pruning = {name for name, option in SCHEMA.options.items() if option.menu[0] in ("Pruning", "Fine-tuning")}
    assert kept - pruning == set(
        "INIT_FROM DISTILL_FROM "
        "MODEL_NAME N_LAYER N_HEAD N_EMBD MLP_WIDTHS HEAD_COUNTS BLOCK_SIZE ACTIVATION DATASET TOKENIZER OPTIMIZER "
        "ADAMWPRUNE_BASE_OPTIMIZER_NAME ADAMWADV_AMSGRAD "
        "SPAM_DENSITY SEED EVALUATE EVAL_SAMPLES TRACKER_PROJECT TRACKER_RUN_NAME".split()
    )
    assert pruning <= kept


def test_what_is_decisive_is_all_but_output_and_observation():
    ignored = SCHEMA.options.keys() - matters.decisive(SCHEMA)
    assert {
        "LOG_INTERVAL",
        "EVAL_INTERVAL",
        "DATA_DIR",
        "LOSS_SPIKE_SIGMA",
        "RUN_TIME",
        "OUTPUT_DIR",
        "TRACKER",
        "PROMPT",
    } <= ignored
    assert {SCHEMA.options[name].menu[0] for name in ignored} == {
        "Experiment tracking", "Output", "Training", "Dataset",
    }  # fmt: skip
    assert {"LEARNING_RATE", "MAX_ITERS", "DTYPE", "THREADS", "VAL_FRACTION", "RETRIES"} <= matters.decisive(SCHEMA)


def test_a_sweep_holds_equal_what_is_no_method_and_no_output():
    free = matters.names(SCHEMA, lambda group: not group.equal_in_sweep)
    assert {"OPTIMIZER", "PRUNING_METHOD", "SPAM_THETA", "LEARNING_RATE", "MIN_LR", "GRAD_CLIP", "TRACKER"} <= free
    assert {"MODEL_NAME", "N_LAYER", "N_HEAD", "N_EMBD", "MAX_ITERS"} <= free
    equal = {"OUTPUT_DIR", "SEED", "DEVICE", "THREADS", "EVAL_INTERVAL", "BATCH_SIZE", "DROPOUT", "DTYPE"}
    assert not equal & free


def test_a_comparison_of_two_runs_allows_other_machines_and_seeds():
    free = matters.names(SCHEMA, lambda group: not group.equal_in_comparison)
    sweep = matters.names(SCHEMA, lambda group: not group.equal_in_sweep)
    more = (
        "SEED DEVICE COMPILE THREADS KERNELS LOG_INTERVAL EVALUATE EVAL_INTERVAL DATA_DIR LOSS_SPIKE_SIGMA OUTPUT_DIR"
    )
    assert free - sweep == {*more.split(), "RUN_TIME", "AUTO_BATCH"}
    assert sweep - free == {"MODEL_NAME", "N_LAYER", "N_HEAD", "N_EMBD", "MLP_WIDTHS", "HEAD_COUNTS", "MAX_ITERS"}


def test_a_sweep_continues_with_other_threads_and_another_output():
    free = matters.names(SCHEMA, lambda group: not group.same_when_sweep_continues)
    outputs = {n for n, option in SCHEMA.options.items() if option.menu[0] in ("Experiment tracking", "Output")}
    assert free == outputs | {"THREADS", "KERNELS", "RUN_TIME", "AUTO_BATCH", "DATA_CACHE_DIR"}


def test_only_the_machine_may_change_after_the_last_step():
    timeless = matters.names(SCHEMA, lambda group: not group.acts_on_steps)
    assert timeless == {"DEVICE", "DTYPE", "COMPILE", "SUM_DTYPE", "THREADS", "KERNELS", "SEED", "DETERMINISTIC"}


def test_a_reproduction_needs_the_same_options_and_the_same_records():
    free = matters.names(SCHEMA, lambda group: not group.same_in_reproduction)
    assert free == SCHEMA.options.keys() - matters.decisive(SCHEMA) - {"LOG_INTERVAL", "EVAL_INTERVAL"}


def test_a_finished_run_counts_on_other_machines_and_with_another_output():
    free = matters.names(SCHEMA, lambda group: not group.same_in_reuse)
    outputs = {n for n, option in SCHEMA.options.items() if option.menu[0] in ("Experiment tracking", "Output")}
    more = (
        "INIT_FROM INIT_MASKS DISTILL_FROM DEVICE COMPILE THREADS KERNELS LOG_INTERVAL DATA_DIR DATA_CACHE_DIR "
        "LOSS_SPIKE_SIGMA RUN_TIME AUTO_BATCH"
    )
    assert free == outputs | set(more.split())


def learned(**options):
    schema = Schema()
    schema.override([(name, text, "test") for name, text in options.items()])
    return matters.learns(schema)


def test_the_parts_that_a_run_uses_have_numbers(monkeypatch):
    assert learned() == {"training": 1, "OPTIMIZER=adamw": 1, "LR_SCHEDULE=cosine": 1}
    assert learned(DISTILL_FROM="runs/dense")["distillation"] == 1
    monkeypatch.setitem(matters.NUMBERS, "OPTIMIZER=adam", 3)
    found = learned(OPTIMIZER="adamwprune", ADAMWPRUNE_BASE_OPTIMIZER_NAME="adam", PRUNING_METHOD="state")
    assert found == {
        "training": 1, "pruning": 1, "OPTIMIZER=adamwprune": 1, "OPTIMIZER=adam": 3, "LR_SCHEDULE=cosine": 1,
        "PRUNING_METHOD=state": 1, "PRUNING_STATE=hybrid": 1, "PRUNING_DYNAMICS=gradual": 1,
        "PRUNING_DISTRIBUTION=global-rms": 2,
    }  # fmt: skip


def test_a_number_belongs_to_a_part_that_exists():
    values = {f"{name}={value}" for name, option in SCHEMA.options.items() for value in option.members}
    assert matters.NUMBERS.keys() <= values | {"training", "pruning", "distillation"}
