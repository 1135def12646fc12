"""Sizes and lengths that match another configuration."""

import random
import re

import pytest

from gpt2 import flops, sizing
from gpt2.shape import ModelOptions
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.prune import schedule


def configuration(**options):
    made = Schema()
    made.override([(name.upper(), str(value), "test") for name, value in options.items()])
    return made


def custom(layers, heads, width, **options):
    return configuration(model_name="custom", n_layer=layers, n_head=heads, n_embd=width, **options)


def distance(sentence):
    return float(re.search(r"([\d.]+) %|([\d.]+) % off", sentence).group(1))


def test_random_targets_are_met_within_two_percent():
    draw = random.Random(1)
    schema = configuration()
    for number in range(20):
        quantity = ("average-nonzeros", "final-nonzeros")[number % 4 == 3]
        heads = draw.randint(2, 12)
        target = custom(
            draw.randint(2, 12), heads, heads * draw.choice([16, 32, 64]), pruning_method="magnitude",
            target_sparsity=round(draw.uniform(0.2, 0.95), 3), max_iters=draw.randint(100, 5000), pruning_interval=10,
        )  # fmt: skip
        schema.clear()
        chosen, sentence = sizing.choose(schema, quantity, target)
        schema.override([(name, text, "test") for name, text in chosen])
        shape = schema.bind(ModelOptions)
        wanted = planned(target)[quantity == "final-nonzeros"]
        made = 12 * shape.n_layer * shape.n_embd**2
        assert abs(made / wanted - 1) <= 0.02
        assert shape.n_embd % shape.n_head == 0
        assert distance(sentence) == pytest.approx(abs(made / wanted - 1) * 100, abs=0.006)


def planned(schema):
    """Average and final non-zeros, step by step: a step uses the masks of the last update up to it."""
    plan, total = (
        schedule.plan(schema.bind(schedule.PruningScheduleOptions)),
        12 * schema["N_LAYER"] * schema["N_EMBD"] ** 2,
    )
    kept = total
    sums = 0
    for step in range(1, schema["MAX_ITERS"] + 1):
        if plan.due(step):
            kept = total - round(total * float(schema["TARGET_SPARSITY"]) * plan.share(step))
        sums += kept
    return sums / schema["MAX_ITERS"], kept


def test_a_chosen_size_is_told_with_its_distance():
    # gpt2_tiny's shape: 1,228,800 weights in the blocks, of which 80 % are pruned.
    target = custom(4, 5, 160, pruning_method="magnitude", pruning_dynamics="static", target_sparsity=0.8)
    chosen, sentence = sizing.choose(custom(4, 5, 160), "final-nonzeros", target)
    sizes = dict(chosen)
    assert sizes.keys() == {"N_LAYER", "N_HEAD", "N_EMBD"}
    made = 12 * int(sizes["N_LAYER"]) * int(sizes["N_EMBD"]) ** 2
    assert sentence == (
        f"N_LAYER={sizes['N_LAYER']} N_HEAD={sizes['N_HEAD']} N_EMBD={sizes['N_EMBD']}: {made:,} weights in scope for "
        f"245,760 non-zeros at the end, {abs(made / 245_760 - 1) * 100:.2f} % {'more' if made > 245_760 else 'fewer'}"
    )


def test_one_shot_pruning_and_dense_models_can_be_matched():
    pruned = custom(2, 2, 32, pruning_method="wanda", pruning_dynamics="oneshot", target_sparsity=0.5)
    assert sizing.amounts(pruned) == sizing.Amounts(24_576, 12_288, 12_288)
    assert sizing.amounts(custom(2, 2, 32)) == sizing.Amounts(24_576, 24_576, 24_576)
    groups = custom(2, 2, 32, pruning_method="magnitude", pruning_dynamics="static", pruning_distribution="n-m")
    assert sizing.amounts(groups) == sizing.Amounts(24_576, 12_288, 12_288)


def test_steps_for_tokens_and_operations():
    options = {"batch_size": 4, "gradient_accumulation": 2, "block_size": 32, "tokenizer": "bytes"}
    target = custom(2, 2, 32, max_iters=900, **options)
    assert sizing.choose(custom(2, 2, 32, **options), "tokens", target) == (
        [("MAX_ITERS", "900")], "MAX_ITERS=900: 230,400 tokens, exactly as many (0.00 % off)"
    )  # fmt: skip
    shape = custom(2, 2, 32, **options).bind(ModelOptions)
    dense = flops.training(shape, 256)
    # Half of 24,576 weights save 6 operations each.
    pruned = {"pruning_method": "magnitude", "pruning_dynamics": "static", "target_sparsity": 0.5}
    steps = round(900 * dense / (dense - 6 * 12_288))
    [(name, text)], sentence = sizing.choose(custom(2, 2, 32, **options, **pruned), "flops", target)
    assert (name, text) == ("MAX_ITERS", str(steps)) and sentence.startswith(f"MAX_ITERS={steps}: ")
    # A gradual schedule has the same shape at each length.
    gradual = custom(2, 2, 32, pruning_method="magnitude", target_sparsity=0.9, pruning_interval=1, **options)
    [(_, text)], sentence = sizing.choose(gradual, "flops", target)
    assert int(text) > 1000 and distance(sentence) < 0.1


def test_what_cannot_be_met_is_one_sentence():
    def refused(schema, quantity, target):
        with pytest.raises(UsageError) as caught:
            sizing.choose(schema, quantity, target)
        [sentence] = caught.value.args
        return sentence

    half = {"pruning_method": "magnitude", "target_sparsity": 0.5}
    assert refused(custom(2, 2, 32, **half), "final-nonzeros", custom(2, 2, 32, **half)) == (
        "match=final-nonzeros chooses the size of a dense model, and this one has PRUNING_METHOD=magnitude; leave it "
        "out"
    )
    soft = custom(2, 2, 32, pruning_method="movement", pruning_movement="soft")
    assert refused(custom(2, 2, 32), "average-nonzeros", soft) == (
        "the non-zeros of soft movement are a result of training, so they cannot be planned"
    )
    assert refused(custom(2, 2, 32), "average-nonzeros", custom(2, 2, 32, pruning_method="str")) == (
        "the non-zeros of str are a result of training, so they cannot be planned"
    )
    given = custom(2, 2, 32, pruning_method="given", init_from="@dense")
    assert refused(custom(2, 2, 32), "average-nonzeros", given) == (
        "INIT_FROM=@dense: the non-zeros of masks that do not exist yet are unknown"
    )
    attention = custom(2, 2, 32, pruning_scope="h.*.attn.*.weight", **half)
    assert refused(custom(2, 2, 32), "final-nonzeros", attention).startswith("PRUNING_SCOPE=h.*.attn.*.weight: a dense")
    tiny = custom(1, 1, 4, pruning_method="magnitude", target_sparsity=0.9)  # 19 weights; 12 and 24 are possible
    assert refused(custom(2, 2, 32), "final-nonzeros", tiny) == (
        "nothing comes within 2 % of 19 weights in scope: N_LAYER=2 N_HEAD=1 N_EMBD=1 comes closest with 24, "
        "26.32 % more"
    )
