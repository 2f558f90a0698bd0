"""Training: checkpoints, the loop, the engine, and what teacher and flow train on."""
