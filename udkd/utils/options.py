"""Building blocks of recipes and studies: a strict base class, and bounded types for their fields."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, GetJsonSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError

# The bounds are generous: they only keep float32, int64 and memory from overflowing.
MAX_PX = 8192
MAX_EPOCHS = 10**6
MAX_SAMPLES = 1 << 20

SizePx = Annotated[int, Field(ge=1, le=MAX_PX)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
NonNegative = Annotated[float, Field(ge=0, le=1e6)]
Positive = Annotated[float, Field(ge=1e-6, le=1e6)]
Temperature = Annotated[float, Field(ge=1e-3, le=1e3)]
JitterStrength = Annotated[float, Field(ge=0, le=100)]
BatchSize = Annotated[int, Field(ge=1, le=MAX_SAMPLES)]
ShortText = Annotated[str, Field(max_length=4096)]


class Section(BaseModel):
    """Base class for a group of keys: frozen and strictly typed; unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


def one_of(names: Callable[[], Sequence[str]]) -> AfterValidator:
    """Check a string against names that are looked up at validation. The error has the form of pydantic's for a Literal."""

    @dataclass(frozen=True)
    class OneOf(AfterValidator):
        """Names the choices in the JSON schema, too."""

        def __get_pydantic_json_schema__(self, schema: CoreSchema, handler: GetJsonSchemaHandler) -> dict[str, Any]:
            return {**handler(schema), "enum": list(names())}

    def check(value: str) -> str:
        if value not in names():
            *others, last = map(repr, names())
            expected = f"{', '.join(others)} or {last}"
            raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
        return value

    return OneOf(check)
