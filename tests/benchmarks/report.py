"""The machine and the date, which every benchmark prints beside its table."""

import json
import platform
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from upvit_core.profiling.throughput import device_name

Row = dict[str, Any]


def machine() -> dict[str, object]:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return {
        "date": time.strftime("%Y-%m-%d"),
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "torch": str(torch.__version__),
        "timm": timm.__version__,
        "python": platform.python_version(),
    }


def table(rows: Sequence[Row]) -> str:
    """Markdown table of rows with the same keys."""
    keys = list(rows[0])
    lines = ["| " + " | ".join(keys) + " |", "|" + "---|" * len(keys)]
    lines += ["| " + " | ".join(_cell(row[key]) for key in keys) + " |" for row in rows]
    return "\n".join(lines)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def publish(name: str, rows: Sequence[Row], out: Path | None, **settings: object) -> None:
    """Print the table with its settings; with `out`, write them as JSON too."""
    where = machine()
    print(f"\n{name}: {json.dumps({**settings, **where})}\n\n{table(rows)}\n", flush=True)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"name": name, "settings": settings, "machine": where, "rows": list(rows)}, indent=1))
