"""From a configuration and data to a trained model: the loop, its guard, its checkpoints, its recipes."""
