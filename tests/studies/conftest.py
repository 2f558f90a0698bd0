"""What holds for the tests of studies."""

from tests.support.studies import checkout  # noqa: F401 (a fixture)
