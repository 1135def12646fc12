"""Fine-tuning of finished models by TRL, under the mask that they were pruned with."""
