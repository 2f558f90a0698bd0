"""What runs a stage: arguments, launch, paths, records, what a kill leaves behind."""
