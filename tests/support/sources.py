"""Sources of images for the tests, opened as ``data.train``."""

import io

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from shared.config.labelset import LabelSet
from shared.config.sections import Data
from shared.data.images import ImageSet, Splits
from shared.data.names import Names
from shared.data.sources import OPENED, open_data
from shared.runtime.errors import UserError


def images(labels, names=None, classes=None) -> ImageSet:
    """An image set of which nobody will decode anything."""
    labels = np.asarray(labels, dtype=np.int64)
    names = [f"{label}/{i}.png" for i, label in enumerate(labels)] if names is None else names
    classes = classes or tuple(f"class{k}" for k in range(labels.max(initial=-1) + 1))
    empty = datasets.Dataset.from_dict({})
    return ImageSet(empty, Names.of(names), labels, classes, "stop")


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def opened(source, labels: str = "1pct", **options) -> Splits:
    OPENED.clear()
    return open_data(Data(train=str(source), **options), LabelSet.parse(labels))


def error_of(source, labels: str = "1pct", **options) -> str:
    with pytest.raises(UserError) as caught:
        opened(source, labels, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def parquet(path, **columns):
    path.parent.mkdir(exist_ok=True, parents=True)
    pq.write_table(pa.table(columns), path)
    return path


PNGS = [encoded(Image.fromarray(np.full((8, 8, 3), i, np.uint8))) for i in range(20)]
STRUCTS = [{"bytes": png, "path": None} for png in PNGS]
HALVES = [i % 2 for i in range(20)]
