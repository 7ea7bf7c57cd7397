"""The model behind HTTP: predictions in micro-batches, samples, counterfactuals, metrics, and a page."""
