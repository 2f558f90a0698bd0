"""What holds for all tests."""

import gc
import os
import sys
from collections.abc import Iterator
from typing import Any

import pytest

# Bytecode is kept, also where the environment says not to (as in many containers). Tests start hundreds of processes,
# and without it each compiles torch, diffusers and MLflow anew: 50 s a stage in place of 14.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

pytest.register_assert_rewrite("tests.support")

from tests.support import warm  # noqa: E402
from tests.support.pages import browser, undrawn  # noqa: E402, F401 (fixtures)

# Modules that take minutes come first: with two processes the last ones are then short, and both end together.
LONGEST = (
    "test_pipeline", "test_report", "test_combinations", "test_tracking_server", "test_judging", "test_sharing",
    "test_training", "test_use", "test_trained", "test_hub", "test_sharded", "test_inputs", "test_points",
    "test_hostile", "test_together", "test_repro_dvc", "test_doctor", "test_places", "test_serving",
    "test_cli_evaluate", "test_reproducibility", "test_extending", "test_graph", "test_docs_site", "test_conditions",
    "test_guidance", "test_demo", "test_examples", "test_space",
)  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    """Processes of tests start warm: pytest-xdist's workers find the server in their environment."""
    if server := warm.start():
        config.add_cleanup(server.close)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    rank = {name: i for i, name in enumerate(LONGEST)}
    items.sort(key=lambda item: rank.get(item.path.stem, len(rank)))


@pytest.fixture(autouse=True, scope="module")
def _no_accelerator_of_another_module() -> None:
    """accelerate keeps the first accelerator's precision for the process: a module must not get another one's."""
    if state := sys.modules.get("accelerate.state"):
        state.AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def gpu() -> Iterator[Any]:
    """An accelerator on the GPU, whatever an earlier one of the module was on."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator()
    assert accelerator.device.type == "cuda"
    yield accelerator
    AcceleratorState._reset_state(reset_partial_state=True)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Imported modules leave the collector's rounds: training ends with one, which takes 0.2 s beside all of them."""
    gc.collect()
    gc.freeze()
