"""Training: objective, step, devices, checkpoints and the loop that joins them."""
