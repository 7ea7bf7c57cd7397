"""Using a trained model: predict, abstain, serve, export."""
