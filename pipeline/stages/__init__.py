"""One module for each stage of dvc.yaml."""

import atexit
import gc
import os
import signal
import sys

from pipeline.runner import parent


def _stop(number: int, frame: object) -> None:
    """Ctrl-C while modules are imported, which takes seconds: at once, as some of them catch what is raised there."""
    if os.environ.get("RANK", "0") == "0" and "IFM_LAUNCHED" not in os.environ:
        words = sys.orig_argv[sys.orig_argv.index("-m") + 1 :]
        name = "-".join([words[0].rpartition(".")[2], *words[1:]])
        print(f"{name}: stopped; `dvc repro` goes on with this stage", file=sys.stderr, flush=True)
    os._exit(128 + number)


if sys.argv[:1] == ["-m"]:  # a stage is being started, and its imports are to come
    if os.environ.get("DVC_STAGE"):
        parent.end_with_dvc()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not where Ctrl-C is ignored, in the background
        signal.signal(signal.SIGINT, _stop)  # until the stage's work begins (pipeline.runner.stage)
    # Imports make a million objects and next to no garbage: looking for it takes a fifth of the time that they take.
    gc.disable()  # so long too
    atexit.register(gc.freeze)  # nor is there a use in looking through all of them once more before memory is freed
