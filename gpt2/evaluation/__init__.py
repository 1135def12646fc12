"""What a model can do: scores on tasks, perplexity, and what its sparsity saves."""
