"""How a stage is run: arguments, launch, paths, records, and what a kill leaves behind."""
