"""One module for each stage of dvc.yaml."""

import atexit
import gc
import sys

if sys.argv[:1] == ["-m"]:  # a stage is being started, and its imports are to come
    # Imports make a million objects and next to no garbage: looking for it takes a fifth of the time that they take.
    gc.disable()  # until the stage's work begins (pipeline.stage)
    atexit.register(gc.freeze)  # nor is there a use in looking through all of them once more before memory is freed
