"""Building blocks of the configuration's types: strict sections, checked numbers, names out of tables."""

from collections import ChainMap
from collections.abc import Mapping
from importlib import import_module
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic_core import PydanticCustomError, core_schema


class Section(BaseModel):
    """Frozen and strict: "3" is no number, an unknown key is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def _distinct(values: list) -> list:
    if len(set(values)) != len(values):
        raise ValueError("the entries must differ from each other")
    return values


Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Distinct = AfterValidator(_distinct)


class NameOf:
    """A key of a table, or of several: ``Annotated[str, NameOf(DYNAMICS)]``. Tables may grow: each check reads them."""

    def __init__(self, *tables: Mapping[str, Any]) -> None:
        self.table = ChainMap(*tables[::-1])  # whose keys are those of the tables in order

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(self._check)

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"enum": list(self.table), "type": "string"}

    def _check(self, value: Any) -> Any:
        if isinstance(value, str) and value in self.table:
            return value
        *others, last = [repr(name) for name in self.table]
        expected = f"{', '.join(others)} or {last}" if others else last
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})


class NamesOf(NameOf):
    """One key of a table or several different ones, as a list in any case: ``Annotated[list, NamesOf(OBJECTIVES)]``."""

    def __get_pydantic_json_schema__(self, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        one = super().__get_pydantic_json_schema__(schema, handler)
        return {"anyOf": [one, {"type": "array", "items": one}]}

    def _check(self, value: Any) -> Any:
        if not isinstance(value, list):
            return [super()._check(value)]
        if not value:
            raise ValueError("list should have at least 1 item")
        return _distinct([super(NamesOf, self)._check(one) for one in value])


def load(target: Any) -> Any:
    """What a table's entry stands for: "module:name" imported, anything else as it is.

    Tables name their modules so that a configuration can be checked without importing torch.
    """
    if not isinstance(target, str):
        return target
    module, _, name = target.partition(":")
    return getattr(import_module(module), name)
