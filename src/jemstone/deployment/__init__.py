"""Using a trained model: predictions that may say "I don't know"."""
