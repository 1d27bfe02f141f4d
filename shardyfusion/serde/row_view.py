"""The read-only row that a user's value encoder gets, with every value in its own exact type."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from shardyfusion.serde.columns import python_values

if TYPE_CHECKING:
    import pandas as pd


class _Columns(dict[str, list[Any]]):
    """The columns of a frame as Python values, each converted when it is first asked for."""

    def __init__(self, frame: pd.DataFrame, names: Sequence[str]) -> None:
        super().__init__()
        self.frame = frame
        self.names = tuple(names)

    def __missing__(self, name: str) -> list[Any]:
        if name not in self.names:
            raise KeyError(f"the row has no column {name!r}; it has {', '.join(map(str, self.names))}")
        self[name] = values = python_values(self.frame[name])
        return values


class Row:
    """One row: `row["name"]` or `row.name`, `"name" in row`, iteration over the names, `dict(row)`.

    `row.keys` is the method; a column of that name, or one that is no identifier, is `row["keys"]`.
    """

    __slots__ = ("_at", "_columns")

    _columns: _Columns
    _at: int

    def __init__(self, columns: _Columns, at: int) -> None:
        object.__setattr__(self, "_columns", columns)
        object.__setattr__(self, "_at", at)

    def __getitem__(self, name: str) -> Any:
        return self._columns[name][self._at]

    def __getattr__(self, name: str) -> Any:
        if name in ("_columns", "_at"):  # not yet set: copying and unpickling ask
            raise AttributeError(name)
        try:
            return self._columns[name][self._at]
        except KeyError as exc:
            raise AttributeError(exc.args[0]) from None

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise AttributeError(f"rows are read-only; cannot set {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise AttributeError(f"rows are read-only; cannot delete {name!r}")

    def __contains__(self, name: object) -> bool:
        return name in self._columns.names

    def __iter__(self) -> Iterator[str]:
        return iter(self._columns.names)

    def __len__(self) -> int:
        return len(self._columns.names)

    def keys(self) -> Sequence[str]:
        """The column names, in the order of the frame."""
        return self._columns.names

    def __repr__(self) -> str:
        return f"Row({', '.join(f'{name}={self[name]!r}' for name in self)})"


def rows_of(frame: pd.DataFrame, names: Sequence[str]) -> Iterator[Row]:
    """The rows of a frame, with the columns `names`."""
    columns = _Columns(frame, names)
    return (Row(columns, at) for at in range(len(frame)))
