"""Parquet: reads the texts of one column of a file in batches, without the other columns."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from gpt2.data.local_files import DataError, opened, reason
from lib.base.errors import UsageError, UserError

if TYPE_CHECKING:
    from pyarrow import Schema
    from pyarrow.parquet import FileMetaData

_BATCH_BYTES, _BATCH_ROWS = 1 << 24, 1024  # a batch has about this size, and at most this many rows
_BUFFER_BYTES = 1 << 20
_TEXT_TYPES = "string large_string string_view binary large_binary binary_view null".split()


def rows(path: Path, field: str) -> Iterator[tuple[str, bytes | None]]:
    """Yield (place, text in UTF-8, or None for a null) of each row.

    Raises DataError if the file cannot be read, and UsageError if it has no such column of text.
    """
    import pyarrow  # here: it takes 0.1 s
    from pyarrow.parquet import ParquetFile

    number = 0
    with opened(path) as handle:
        try:
            # With pre_buffer pyarrow would hold a row group in memory, and the file may be a single row group.
            file = ParquetFile(handle, buffer_size=_BUFFER_BYTES, pre_buffer=False)
            _check_column(path, field, file.schema_arrow)
            for batch in file.iter_batches(_batch_rows(file.metadata), columns=[field], use_threads=False):
                column = batch.column(batch.schema.get_field_index(field))
                for content in column.cast(pyarrow.large_binary()).to_pylist():
                    number += 1
                    yield f"{path}: row {number}", content
        except (UserError, MemoryError):
            raise
        except Exception as error:  # the errors of pyarrow have no common class
            where = f" after row {number:,}" * bool(number)
            raise DataError(f"{path}: cannot be read as parquet{where}: {reason(error)}; copy it again") from None


def _check_column(path: Path, field: str, schema: "Schema") -> None:
    """Raise UsageError unless one column of this name holds text."""
    from pyarrow import types

    if (count := schema.names.count(field)) != 1:
        what = f"has {count} fields {field!r}" if count else f"has no field {field!r}"
        raise UsageError(f"{path}: {what}; set DATASET_TEXT_FIELD to one of {', '.join(schema.names)}")
    found = schema.field(field).type
    value = found.value_type if types.is_dictionary(found) else found
    if not any(getattr(types, f"is_{name}")(value) for name in _TEXT_TYPES):
        raise UsageError(f"{path}: field {field!r} holds {found}, not text; set DATASET_TEXT_FIELD to a field of text")


def _batch_rows(metadata: "FileMetaData") -> int:
    """Return how many rows take about _BATCH_BYTES, with all columns: asked for one, pyarrow 26 may abort()."""
    size = sum(metadata.row_group(n).total_byte_size for n in range(metadata.num_row_groups))
    return min(_BATCH_ROWS, max(1, _BATCH_BYTES * metadata.num_rows // max(1, size)))
