"""The cost of a map, told before it is made: seconds a cut from one measured batch, and bytes.

A cut is evaluated in as many multiply-accumulates as the plans of the design have on average. A repaired one runs the
original and the cut side by side and adds up second moments, which together takes as long as REPAIR_PASSES of the whole
model on each input (measured on the demo). Memory is an upper bound: the cut as wide as the whole model.
"""

import time
from dataclasses import dataclass
from itertools import islice

import numpy as np

from upvit_core.mapping.design import Design
from upvit_core.mapping.measure import KEPT_BYTES, CutMeter
from upvit_core.models.predict import predict
from upvit_core.profiling.macs import count_macs
from upvit_core.profiling.memory import estimate_memory
from upvit_core.records.basis import Basis

REPAIR_PASSES = 4.0
PLANS = 12


@dataclass(frozen=True)
class Cost:
    """The cost of a map. seconds: of one cut. memory: bytes at most."""

    seconds: float
    memory: int


def seconds_a_mac(meter: CutMeter) -> float:
    """Seconds that a multiply-accumulate of the whole model takes on this device, by its second pass over a batch."""
    x, y = next(meter.read())
    predict(meter.loaded.model, [(x, y)])
    start = time.perf_counter()
    predict(meter.loaded.model, [(x, y)])
    return (time.perf_counter() - start) / (len(x) * count_macs(meter.loaded.shape))


def expected_cost(meter: CutMeter, pace: float) -> Cost:
    """The cost of a cut. pace: seconds a multiply-accumulate, by `seconds_a_mac` or a known speed of the device."""
    shape, design = meter.loaded.shape, Design(meter.scores, meter.basis)
    macs = np.mean([count_macs(plan.shape_after) for plan in islice(design.plans(), PLANS)])
    repaired = meter.repair * REPAIR_PASSES * meter.fitted_to * count_macs(shape)
    batch = shape.batch_size(250, large=16)
    one = estimate_memory(shape, batch)
    inputs = len(meter.inputs) * (
        shape.num_tokens * 8 if shape.is_language else int(np.prod(shape.img_size)) * 4 * shape.in_chans
    )
    memory = 2 * one.weights + one.activations + min(inputs, KEPT_BYTES) + len(meter.inputs) * shape.output_bytes
    if meter.repair:
        memory += 2 * 4 * meter.fitted_to * shape.num_tokens * max(shape.embed_dims)
    if meter.basis == Basis.DIRECTIONS:
        D = shape.embed_dim
        memory += 8 * sum(4 * D**2 + 4 * b.attention**2 + (b.ffn + 1) ** 2 + D**2 for b in shape.blocks)
    return Cost(pace * (len(meter.inputs) * float(macs) + repaired), int(memory))
