"""Score files of DeiT-B's shape with made-up numbers, in the form in which the real ones were released."""

from pathlib import Path

import numpy as np


def made_up_scores(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)

    def write(name: str, width: int, scale: float) -> None:
        numbers = rng.lognormal(np.log(scale), 1.5, width)
        (folder / name).write_text("\n".join(map(repr, numbers.tolist())) + "\n")

    write("Deit_base_12_neck_768_kl_2k.txt", 768, 1.0)
    for block in range(12):
        write(f"Deit_base_12_attn_768_kl_{block}_2k.txt", 768, 0.03)
        write(f"Deit_base_12_ffn_3072_kl_{block}_2k.txt", 3072, 0.01)
    return folder
