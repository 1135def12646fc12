"""What trackers show of a configuration: what is learned, by usual names, without what is not in use."""

from lib.config.kconf import Schema
from lib.config.parameters import parameters


def test_the_defaults():
    assert parameters(Schema()) == {
        "model": "gpt2",
        "n_layer": 12,
        "n_head": 12,
        "n_embd": 768,
        "mlp_widths": "",
        "head_counts": "",
        "block_size": 1024,
        "dropout": 0.0,
        "activation": "gelu-tanh",
        "init_from": "",
        "dataset": "stdlib",
        "tokenizer": "gpt2",
        "val_fraction": 0.05,
        "max_iters": 10000,
        "run_time": "",
        "learning_rate": 0.0006,
        "warmup_steps": 200,
        "lr_scheduler_type": "cosine",
        "min_lr": 6e-05,
        "batch_size": 12,
        "gradient_accumulation_steps": 1,
        "grad_clip": 1.0,
        "distill_from": "",
        "nan_policy": "stop",
        "loss_spike_sigma": 7.0,
        "retries": 0,
        "retry_lr_factor": 0.5,
        "evaluate": True,
        "eval_interval": 250,
        "eval_samples": 200,
        "log_interval": 10,
        "optimizer": "adamw",
        "weight_decay": 0.1,
        "adam_beta1": 0.9,
        "adam_beta2": 0.95,
        "adam_epsilon": 1e-08,
        "pruning_method": "none",
        "seed": 1337,
    }


def test_options_appear_when_they_are_in_use():
    schema = Schema()
    schema.override([("PRUNING_METHOD", "magnitude", "test"), ("TARGET_SPARSITY", "0.9", "test")])
    found = parameters(schema)
    assert (found["pruning_method"], found["target_sparsity"]) == ("magnitude", 0.9)
    schema.override([("DISTILL_FROM", "runs/dense", "test")])
    taught = {name: value for name, value in parameters(schema).items() if name not in found or name == "distill_from"}
    assert taught == {"distill_from": "runs/dense", "distill_weight": 0.67, "distill_temperature": 1.0}
    assert not {"device", "output_dir", "tracker", "data_dir"} & found.keys()
