"""What the core does without: the packages of the extra [pipeline], which pyproject.toml lists by distribution."""

PIPELINE = frozenset(
    {
        "cleanfid",
        "datasets",
        "dvc",
        "filelock",
        "jinja2",
        "matplotlib",
        "mlflow",
        "ot",
        "pandas",
        "psutil",
        "pyarrow",
        "ruamel",
        "scipy",
        "sklearn",
        "yaml",
    }
)


def missing(error: ImportError) -> str | None:
    """What to say, in one line, where a package of the extra is not installed; None for another error."""
    name = (error.name or "").partition(".")[0]
    if not isinstance(error, ModuleNotFoundError) or name not in PIPELINE:
        return None
    return f"{name} is not installed; this needs the extra [pipeline]: pip install 'ifm[pipeline]'"
