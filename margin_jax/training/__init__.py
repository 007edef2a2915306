"""From a batch to an epoch: state, step, optimiser, checkpoint. It knows no configuration."""
