"""Code that a process runs first to be one in which only the core's packages are installed."""

BLOCKER = """
import importlib.util, sys
gone = (
    "cleanfid", "datasets", "dvc", "matplotlib", "mlflow", "ot", "pandas", "pyarrow", "ruamel", "scipy", "sklearn",
    "torchvision",
)
real = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name in gone else real(name, package)
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in gone:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Blocked())
"""
