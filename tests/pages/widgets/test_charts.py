"""Charts as they are sent to the browser."""

from base64 import b64decode

import numpy as np
import pytest

from pages.widgets.charts import _Ready


@pytest.mark.parametrize(
    "values",
    [
        np.linspace(-1, 1, 6).reshape(2, 3),
        np.float32([1.5, np.nan]),
        np.arange(3),
        np.array([2**40, -1]),
        np.array([[True, False]]),
        np.arange(8, dtype=np.uint8).reshape(2, 2, 2)[:, :, 0],
        np.array(["a", "b"]),
        np.zeros(0),
    ],
    ids=lambda values: str(values.dtype),
)
def test_arrays_arrive_as_they_are(values: np.ndarray) -> None:
    sent = _Ready({"data": [{"z": values}]}).to_dict()["data"][0]["z"]
    if isinstance(sent, dict):
        shape = [int(side) for side in sent.get("shape", str(len(values))).split(",")]
        sent = np.frombuffer(b64decode(sent["bdata"]), sent["dtype"]).reshape(shape)
    np.testing.assert_array_equal(sent, values)
