"""Many experiments compared: sweeps, ablation, objectives."""
