"""Chooses the size or length of a configuration so that a quantity equals that of another: match= in a sweep."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import torch

from gpt2 import flops
from gpt2.data import tokenizer
from gpt2.model import GPT2
from gpt2.planned import Planned, average_kept
from gpt2.shape import ModelOptions, ShapeOptions
from gpt2.weights import source
from lib.base.errors import UsageError
from lib.config.kconf import Schema
from lib.prune import mask, scope

_CLOSE = 0.02  # the largest distance that counts as equal
_WIDTHS = (8, 4, 2, 1)  # kernels are fast for heads whose width is a multiple of 8, then of 4, and so on
_MOST_ROUNDS = 20  # until the steps for a number of FLOPs do not change; it takes 2 to 4

Choice = tuple[list[tuple[str, str]], str]  # assignments as (name, text), and the choice in words


@dataclasses.dataclass(frozen=True)
class Amounts:
    """What a configuration will have: its weights in scope, and its non-zeros among them."""

    total: int
    average: float  # over the steps
    final: int


def choose(schema: Schema, quantity: str, target: Schema) -> Choice:
    """The options of `schema` that make its `quantity` equal to that of `target`, and a sentence with the distance.

    `quantity` is tokens or flops, for which MAX_ITERS is chosen, or average-nonzeros or final-nonzeros, for which the
    width and the depth of a dense model are. `schema` is changed. Raises UsageError if nothing comes within 2 %.
    """
    if quantity == "tokens":
        return _for_tokens(schema, target)
    if quantity == "flops":
        return _for_flops(schema, target)
    return _for_nonzeros(schema, quantity, target)


# ---- how long --------------------------------------------------------------------------------------------------------


def _for_tokens(schema: Schema, target: Schema) -> Choice:
    wanted = target["MAX_ITERS"] * _tokens(target)
    steps = max(1, round(wanted / _tokens(schema)))
    made = steps * _tokens(schema)
    if made != wanted:
        raise UsageError(f"no number of steps of {_tokens(schema):,} tokens makes {wanted:,} tokens; change the batch")
    return _steps(steps, made, wanted, "tokens")


def _for_flops(schema: Schema, target: Schema) -> Choice:
    wanted = training_flops(target)
    steps = schema["MAX_ITERS"]
    for _ in range(_MOST_ROUNDS):  # the schedule of pruning, and so the cost of a step, depends on the steps
        before, steps = steps, max(1, round(wanted / (training_flops(schema) / schema["MAX_ITERS"])))
        schema.override([("MAX_ITERS", str(steps), "match=flops")])
        if steps == before:
            break
    made = training_flops(schema)
    _check_close(made, wanted, f"MAX_ITERS={steps} comes closest", "FLOPs")
    return _steps(steps, made, wanted, "FLOPs of training")


def _steps(steps: int, made: float, wanted: float, unit: str) -> Choice:
    return [("MAX_ITERS", str(steps))], f"MAX_ITERS={steps}: {_amount(made)} {unit}, {_distance(made, wanted)}"


def training_flops(schema: Schema) -> float:
    """The operations that training will need, counted by non-zeros; raises UsageError if they cannot be planned."""
    shape, vocab_size = schema.bind(ShapeOptions), tokenizer.vocab_size(schema["TOKENIZER"])
    token = flops.training(shape, vocab_size)
    if schema["PRUNING_METHOD"] != "none":
        run = _planned(schema)
        known = flops.facts(run.model, run.pruner)
        token -= known["training_per_zero"] * (run.total - average_kept(run))
    return token * schema["MAX_ITERS"] * _tokens(schema)


def _tokens(schema: Schema) -> int:
    """The tokens of a step."""
    return schema["BATCH_SIZE"] * schema["GRADIENT_ACCUMULATION"] * schema["BLOCK_SIZE"]


# ---- how large -------------------------------------------------------------------------------------------------------


def _for_nonzeros(schema: Schema, quantity: str, target: Schema) -> Choice:
    if schema["PRUNING_METHOD"] != "none":
        raise UsageError(
            f"match={quantity} chooses the size of a dense model, and this one has "
            f"PRUNING_METHOD={schema['PRUNING_METHOD']}; leave it out"
        )
    found = amounts(target)
    wanted = found.average if quantity == "average-nonzeros" else found.final
    if wanted < 1:
        raise UsageError(f"the other configuration keeps {wanted:g} weights, and no model is that small")
    like = target.bind(ShapeOptions)
    layers, heads, width = min(_candidates(like, wanted), key=lambda each: _unlikeness(like, wanted, *each))
    made = _weights(layers, width)
    shape = f"N_LAYER={layers} N_HEAD={heads} N_EMBD={width}"
    _check_close(made, wanted, f"{shape} comes closest", "weights in scope")
    chosen = [("N_LAYER", str(layers)), ("N_HEAD", str(heads)), ("N_EMBD", str(width))]
    if schema["MODEL_NAME"] != "custom":
        chosen.insert(0, ("MODEL_NAME", "custom"))
    kind = "on average over training" if quantity == "average-nonzeros" else "at the end"
    words = f"{shape}: {made:,} weights in scope for {wanted:,.0f} non-zeros {kind}, {_distance(made, wanted)}"
    return chosen, words


def amounts(schema: Schema) -> Amounts:
    """The planned non-zeros of a configuration; raises UsageError if they are not known before training."""
    shape = schema.bind(ShapeOptions)
    dense = _own_weights(shape)
    if schema["PRUNING_METHOD"] == "none":
        return Amounts(dense, dense, dense)
    _check_scope(shape, schema)
    if schema["PRUNING_DYNAMICS"] == "oneshot":
        given = schema["TARGET_SPARSITY"]
        sparsity = 1 - schema["PRUNING_N"] / schema["PRUNING_M"] if given is None else given
        kept = dense - mask.count(sparsity, dense)
        return Amounts(dense, kept, kept)
    run = _planned(schema)
    return Amounts(run.total, average_kept(run), run.kept_in_the_end)


def _check_scope(shape: ModelOptions, schema: Schema) -> None:
    """Raise UsageError unless the weights in scope are those that a dense model counts."""
    if schema["PRUNING_STRUCTURE"] not in (None, "none"):
        raise UsageError(
            f"PRUNING_STRUCTURE={schema['PRUNING_STRUCTURE']}: a dense model of the shape that is left needs no match; "
            "set its MLP_WIDTHS or HEAD_COUNTS"
        )
    with torch.device("meta"):
        model = GPT2(shape, vocab_size=64)
    selected = scope.select(model, schema["PRUNING_SCOPE"]).values()
    if set(map(id, selected)) != set(map(id, model.prunable())):
        raise UsageError(
            f"PRUNING_SCOPE={schema['PRUNING_SCOPE']}: a dense model can only match the non-zeros of all matrices of "
            "the blocks; leave PRUNING_SCOPE out"
        )


def _candidates(like: ModelOptions, wanted: float) -> Iterator[tuple[int, int, int]]:
    """Layers, heads and width of models up to twice as deep and with up to twice as many heads, near `wanted`."""
    for layers, heads in itertools.product(range(1, 2 * like.n_layer + 1), range(1, 2 * like.n_head + 1)):
        ideal = math.sqrt(wanted / 12 / layers) / heads  # the width of a head
        for step in _WIDTHS:
            for width in {math.floor(ideal / step) * step, math.ceil(ideal / step) * step}:
                if width:
                    yield layers, heads, heads * width


def _unlikeness(like: ModelOptions, wanted: float, layers: int, heads: int, width: int) -> tuple[bool, float]:
    """How bad a candidate is: too far off, then its distance, its proportions, and heads of odd widths."""
    far = abs(_weights(layers, width) / wanted - 1)
    if far > _CLOSE:
        return True, far
    proportions = abs(math.log(width / layers * like.n_layer / like.n_embd))
    of_head = abs(math.log(width / heads * like.n_head / like.n_embd))
    odd = next(place for place, step in enumerate(_WIDTHS) if width // heads % step == 0)
    return False, proportions + of_head + odd / 5 + 10 * far


def _own_weights(shape: ModelOptions) -> int:
    """As `_weights`, of a model whose layers may have lost neurons and heads."""
    attention = 4 * sum(shape.heads) * (shape.n_embd // shape.n_head)
    return shape.n_embd * (attention + 2 * sum(shape.widths))


def _weights(layers: int, width: int) -> int:
    """The weights in the matrices of the blocks, which are those of the model that may be pruned."""
    return 12 * layers * width**2


def _planned(schema: Schema) -> Planned:
    """What pruning will do; raises UsageError if only training shows it."""
    if schema["PRUNING_MOVEMENT"] == "soft":
        raise UsageError("the non-zeros of soft movement are a result of training, so they cannot be planned")
    if schema["PRUNING_METHOD"] == "str":
        raise UsageError("the non-zeros of str are a result of training, so they cannot be planned")
    begun = None
    if schema["PRUNING_METHOD"] == "given":
        for name in ("INIT_FROM", "INIT_MASKS"):
            if schema[name].startswith("@"):
                raise UsageError(f"{name}={schema[name]}: the non-zeros of masks that do not exist yet are unknown")
        begun = source.find(schema["INIT_FROM"], schema["OUTPUT_DIR"]) if schema["INIT_FROM"] else None
    return Planned(schema, begun)


# ---- in words --------------------------------------------------------------------------------------------------------


def _check_close(made: float, wanted: float, what: str, unit: str) -> None:
    if abs(made / wanted - 1) > _CLOSE:
        raise UsageError(
            f"nothing comes within 2 % of {_amount(wanted)} {unit}: {what} with {_amount(made)}, "
            f"{_distance(made, wanted)}"
        )


def _amount(number: float) -> str:
    return f"{number:,.0f}" if number < 1e12 else f"{number:.4g}"


def _distance(made: float, wanted: float) -> str:
    """`exactly as many`, `0.31 % more`, `1.20 % fewer`."""
    if made == wanted:
        return "exactly as many (0.00 % off)"
    return f"{abs(made / wanted - 1):.2%} {'more' if made > wanted else 'fewer'}".replace("%", " %")
