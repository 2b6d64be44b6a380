"""Ten thousand malformed records: each is read, or refused with one sentence; nothing crashes, nothing is written."""

import copy
import json
import os
import random
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.small_run import half_plan, spec_for, write_teacher
from upvit_core.errors import UPViTError
from upvit_core.models.checkpoint import load_model
from upvit_core.records.plan import PruningPlan
from upvit_core.runs import RunSpec, RunStore
from upvit_core.runs.checkpoints import load_newest, save_checkpoint
from upvit_core.runs.folder import true_state
from upvit_core.runs.memory_check import shapes_of

LONGEST_SENTENCE = 1500
ODD: tuple[object, ...] = (
    None, True, -1, 0, 2**31, 2**63, 10**30, 1e308, -1e308, "", "\x00", "../../etc/passwd", "/etc/passwd", "é" * 50,
    "A" * 10_000, [], {}, [[]], [None], {"keep": [0]}, list(range(2000)), "NaN", "Infinity", "1e999",
)  # fmt: skip


def mutated(rng: random.Random, content: bytes) -> bytes:
    """One of: bytes changed, cut out, doubled or put in; JSON values replaced, removed, nested or made enormous."""
    kind = rng.random()
    if kind < 0.5:
        garbled = bytearray(content)
        for _ in range(rng.randint(1, 6)):
            place, what = rng.randrange(max(len(garbled), 1)), rng.random()
            if what < 0.4 and garbled:
                garbled[place] = rng.randrange(256)
            elif what < 0.6:
                del garbled[place : place + rng.randint(1, 60)]
            elif what < 0.8:
                garbled[place:place] = garbled[place : place + rng.randint(1, 60)]
            else:
                garbled[place:place] = rng.choice(
                    (b"[" * 5000, b"{", b"}", b'"', b"\xff\xfe", b"9" * 400, b"NaN", b"-")
                )
        return bytes(garbled)
    try:
        value = json.loads(content)
    except ValueError:
        return content[: rng.randrange(len(content))]
    for _ in range(rng.randint(1, 3)):
        places = list(_places(value))
        holder, key = rng.choice(places)
        if rng.random() < 0.3 and isinstance(holder, dict):
            holder.pop(key, None)
        else:
            holder[key] = copy.deepcopy(rng.choice(ODD))
        if not value:
            break
    return json.dumps(value).encode()


def _places(value: object) -> Iterator[tuple[Any, Any]]:
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in list(pairs):
        yield value, key
        yield from _places(inner)


def refused_or_read(read: Callable[[], object]) -> Any:
    """The record that was read, or None after one clear sentence."""
    try:
        return read()
    except UPViTError as error:
        text = str(error)
        assert text.strip(), "an empty sentence"
        assert len(text) < LONGEST_SENTENCE, text[:300]
        assert "Traceback" not in text
        return None


def put(path: Path, content: bytes) -> None:
    """Write a new file: some file systems flush one that is cut to nothing."""
    path.unlink(missing_ok=True)
    path.write_bytes(content)


def files_under(*roots: Path) -> dict[str, int]:
    return {str(path): path.stat().st_size for root in roots for path in root.rglob("*") if path.is_file()}


@pytest.fixture
def nothing_elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The working directory and its neighbours are as before."""
    here = tmp_path / "here"
    here.mkdir()
    (tmp_path / "neighbour").write_text("untouched")
    monkeypatch.chdir(here)
    before = files_under(here), (tmp_path / "neighbour").read_text()
    yield
    assert (files_under(here), (tmp_path / "neighbour").read_text()) == before


def test_4000_malformed_plans(tmp_path: Path, nothing_elsewhere: None) -> None:
    shape = write_teacher(tmp_path / "teacher")
    good = json.dumps(half_plan(shape)).encode()
    rng, read = random.Random(1), 0
    path = tmp_path / "plan.json"
    for _ in range(4000):
        put(path, mutated(rng, good))
        plan = refused_or_read(lambda: PruningPlan.load(path))
        if plan is not None:
            read += 1
            assert plan.shape_after.embed_dim <= plan.shape_before.embed_dim
    assert 0 < read < 2500  # changes that leave a plan a plan are few


def test_3000_malformed_specs_and_states(tmp_path: Path, nothing_elsewhere: None) -> None:
    write_teacher(tmp_path / "teacher")
    (tmp_path / "images").mkdir()
    store = RunStore(tmp_path / "runs")
    run = store.create(spec_for(tmp_path))
    spec, state = ((run.folder / name).read_bytes() for name in ("spec.json", "state.json"))
    rng = random.Random(2)
    for i in range(3000):
        if i % 3:
            put(run.folder / "spec.json", mutated(rng, spec))
            put(run.folder / "state.json", state)
        else:
            put(run.folder / "spec.json", spec)
            put(run.folder / "state.json", mutated(rng, state))
        found = refused_or_read(lambda: store.get(run.id))
        if i % 10 == 0:
            (summary,) = store.list()
            assert (found is None) == (summary.spec is None) == bool(summary.problem)
        if found is not None:
            assert isinstance(found.spec, RunSpec)
            true_state(run.folder)  # does not raise
            shapes_of(found.spec)  # does not raise


def test_1500_malformed_safetensors(tmp_path: Path, nothing_elsewhere: None) -> None:
    write_teacher(tmp_path / "teacher")
    file, config = tmp_path / "teacher" / "model.safetensors", tmp_path / "teacher" / "config.json"
    content, described = file.read_bytes(), config.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header, rest = content[8 : 8 + length], content[8 + length :]
    rng = random.Random(3)
    for i in range(1500):
        put(config, mutated(rng, described) if i % 3 == 0 else described)
        if i % 3 == 1:
            new = mutated(rng, header)
            put(file, len(new).to_bytes(8, "little") + new + rest)
        elif i % 3 == 2:
            changed = bytearray(content)
            for _ in range(rng.randint(1, 4)):
                changed[rng.randrange(min(len(changed), length + 8))] = rng.randrange(256)
            put(file, changed if rng.random() < 0.7 else changed[: rng.randrange(len(changed))])
        else:
            put(file, content)
        refused_or_read(lambda: load_model(str(tmp_path / "teacher")))


def test_1500_malformed_checkpoints_of_torch(tmp_path: Path, nothing_elsewhere: None) -> None:
    weights = {"cls_token": torch.zeros(1, 1, 8), "blocks.0.norm1.weight": torch.ones(8)}
    folder = tmp_path / "checkpoints"
    saved = save_checkpoint(folder, {"step": 1, "student": weights})
    run_content = saved.read_bytes()
    model_file = tmp_path / "model.pth"
    torch.save({"model": weights}, model_file)
    model_content = model_file.read_bytes()
    rng = random.Random(4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(1500):
            content = run_content if i % 2 else model_content
            garbled = bytearray(content)
            near = rng.choice((0, len(content) - 400, rng.randrange(len(content))))
            for _ in range(rng.randint(1, 12)):
                garbled[min(max(near + rng.randrange(400), 0), len(garbled) - 1)] = rng.randrange(256)
            whole = garbled if rng.random() < 0.8 else garbled[: rng.randrange(len(garbled))]
            if i % 2:
                put(saved, whole)
                said: list[str] = []
                state = load_newest(folder, said.append)
                assert (state is None) == (len(said) == 1)
            else:
                put(model_file, whole)
                refused_or_read(lambda: load_model(str(model_file)))


@pytest.mark.parametrize("name", ["spec.json", "state.json", "metrics.jsonl", "log.txt"])
def test_a_link_or_a_giant_in_a_run_folder(tmp_path: Path, name: str) -> None:
    write_teacher(tmp_path / "teacher")
    (tmp_path / "images").mkdir()
    store = RunStore(tmp_path / "runs")
    run = store.create(spec_for(tmp_path))
    secret = tmp_path / "secret"
    secret.write_text('{"secret": "sesame"}\n')
    place = run.folder / name
    place.unlink(missing_ok=True)
    place.symlink_to(secret)
    told = json.dumps([repr(store.list()), store.tail_log(run.id), store.read_metrics(run.id)[0]])
    assert "sesame" not in told
    assert secret.read_text() == '{"secret": "sesame"}\n'
    place.unlink()
    with place.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)  # a hole: a tebibyte that takes no room
    assert len(store.list()) == 1
    assert len("".join(store.tail_log(run.id))) < 1 << 20
