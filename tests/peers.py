"""The same faults put into other programs that train a GPT-2, for docs/RELIABILITY.md.

    python -m tests.peers --nanogpt CLONE [--kills 40] [--seed 1]

Needs `accelerate`, without which transformers' Trainer does not run, and a clone of github.com/karpathy/nanoGPT. All
three train a model of the same tiny size on the CPU and save at every second of 24 updates, in a folder in memory.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import pickle
import random
import runpy
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from tests.faults import files, runs
from tests.soak import store

START, END = "<!-- peers -->", "<!-- /peers -->"
STEPS, DAMAGED, WIDTH = 24, 300, 128


# --- one run of each, from its newest checkpoint if there is one


def trainer(folder: Path) -> int:
    import transformers
    from transformers.trainer_utils import get_last_checkpoint

    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    sizes = dict(vocab_size=19, n_positions=8, n_layer=1, n_head=2, n_embd=WIDTH)
    torch.manual_seed(0)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    rows = [{"input_ids": torch.randint(19, (8,))} for _ in range(64)]
    rows = [row | {"labels": row["input_ids"]} for row in rows]
    options = transformers.TrainingArguments(
        output_dir=str(folder), max_steps=STEPS, save_steps=2, save_total_limit=2, per_device_train_batch_size=2,
        gradient_accumulation_steps=2, use_cpu=True, report_to=[], disable_tqdm=True, seed=0,
    )  # fmt: skip
    newest = get_last_checkpoint(str(folder)) if folder.is_dir() else None
    transformers.Trainer(model, options, train_dataset=rows).train(resume_from_checkpoint=newest)
    torch.save({name: tensor.clone() for name, tensor in model.state_dict().items()}, folder / "end")
    return 0


def nanogpt(folder: Path) -> int:
    torch.set_num_threads(1)
    begin = "resume" if (folder / "ckpt.pt").exists() else "scratch"
    options = dict(
        dataset="faults", out_dir=folder, init_from=begin, device="cpu", dtype="float32", compile=False,
        n_layer=1, n_head=2, n_embd=WIDTH, block_size=8, dropout=0.1, batch_size=2, gradient_accumulation_steps=2,
        max_iters=STEPS, lr_decay_iters=STEPS, eval_interval=2, eval_iters=1, log_interval=1000,
        always_save_checkpoint=True,
    )  # fmt: skip
    sys.argv = ["train.py", *(f"--{name}={value}" for name, value in options.items())]
    sys.path.insert(0, os.getcwd())
    runpy.run_path("train.py", run_name="__main__")
    shutil.copy(folder / "ckpt.pt", folder / "end")
    return 0


def ours(folder: Path) -> int:
    return runs.learn(folder, width=WIDTH)


def weights_at_the_end(folder: Path) -> Any:
    if (folder / "end.json").exists():
        return (folder / runs.KEPT[0]).read_bytes()
    saved = torch.load(folder / "end", weights_only=False)
    return {name: tensor.tolist() for name, tensor in saved.get("model", saved).items()}


def newest(folder: Path) -> Path | None:
    """The checkpoint that the program resumes from."""
    found = list(folder.glob("checkpoint-*")) or list(folder.glob("checkpoints/step-*"))
    if found:
        return max(found, key=lambda path: int(path.name.split("-")[1][:8]))
    return folder / "ckpt.pt" if (folder / "ckpt.pt").exists() else None


# --- faults


def killed(run: Callable[[Path], int], kills: int, seed: int, folder: Path) -> tuple[Counter[str], float]:
    """Kill, resume, and so on; a checkpoint that does not resume is set aside by hand."""
    rng, seen = random.Random(seed), Counter[str]()
    reference = folder / "unbroken"
    answers = [runs.Child(run, folder / name, log=folder / "log").wait() for name in ("warm", "unbroken")]
    if answers != [0, 0]:
        raise RuntimeError(f"{run.__name__} does not run: {answers} {runs.last_line(folder / 'log')}")
    started = time.perf_counter()
    runs.Child(run, folder / "again", log=folder / "log").wait()
    whole = time.perf_counter() - started
    seen["repeatable"] = weights_at_the_end(folder / "again") == weights_at_the_end(reference)
    while seen["kills"] < kills:
        place, hit = folder / f"run-{seen['runs']}", False
        seen["runs"] += 1
        for attempt in range(12):
            child = runs.Child(run, place, log=folder / "log")
            if attempt < 8:
                time.sleep(whole * rng.uniform(0.3, 1))
                child.send(signal.SIGKILL)
            answer = child.wait()
            if answer == 0:
                seen["resumed"] += hit
                seen["bit-equal"] += hit and weights_at_the_end(place) == weights_at_the_end(reference)
                break
            if answer == -signal.SIGKILL:
                seen["kills"] += 1
                hit = hit or newest(place) is not None
            else:
                print(f"{run.__name__} did not resume: {answer}", flush=True)
                set_aside(place, seen)
        shutil.rmtree(place)
    return seen, whole


def set_aside(place: Path, seen: Counter[str]) -> None:
    seen["did not resume"] += 1
    if bad := newest(place):
        shutil.rmtree(bad) if bad.is_dir() else bad.unlink()
        seen["nothing left"] += newest(place) is None


def terminated(run: Callable[[Path], int], whole: float, folder: Path) -> str:
    """SIGTERM in the middle of a run: is there a checkpoint of that moment?"""
    endings = Counter[str]()
    for number in range(12):
        child = runs.Child(run, folder / f"terminated-{number}", log=folder / "log")
        time.sleep(whole * (0.5 + 0.03 * number))
        child.send(signal.SIGTERM)
        answer = child.wait()
        whole_run = any(path.stat().st_size for path in (folder / f"terminated-{number}").glob("end*"))
        endings["had finished" if whole_run else "saved" if answer == 0 else "ended without saving"] += 1
    return ", ".join(f"{what} {count}" for what, count in endings.items())


def changed_in_silence(path: Path, read: Callable[[], Any], seed: int) -> str:
    """Flip one bit at a time in a file of weights."""
    rng, whole, right, seen = random.Random(seed), path.read_bytes(), read(), Counter[str]()
    for _ in range(DAMAGED):
        place = rng.randrange(len(whole))
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << rng.randrange(8)]) + whole[place + 1 :])
        try:
            got = read()
        except Exception:
            seen["refused"] += 1
        else:
            seen["same" if got == right else "in silence"] += 1
    path.write_bytes(whole)
    return f"{seen['in silence']} of {DAMAGED}"


def written(generate: Callable[[], object]) -> str:
    try:
        generate()
    except Exception as error:
        return f"{type(error).__name__}: {str(error).splitlines()[0][:70]}"
    return "text, without a word"


# --- the models of each, to be damaged


def our_model(folder: Path) -> tuple[str, str]:
    from gpt import generate
    from gpt.storage.pretrained import load_pretrained, save_pretrained

    model = files.model()
    save_pretrained(model, folder)
    silent = changed_in_silence(folder / "model.safetensors", lambda: files.weights(load_pretrained(folder)), 1)
    model.final_norm.weight.data[0] = torch.nan
    return silent, written(lambda: generate(model, torch.tensor([[1]]), 3, temperature=0))


def their_model(folder: Path) -> tuple[str, str]:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    sizes = dict(vocab_size=19, n_positions=8, n_layer=1, n_head=2, n_embd=8)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes, bos_token_id=None, eos_token_id=None))
    model.save_pretrained(folder)

    def read() -> bytes:
        loaded = transformers.GPT2LMHeadModel.from_pretrained(folder)
        return b"".join(tensor.numpy().tobytes() for tensor in loaded.state_dict().values())

    silent = changed_in_silence(folder / "model.safetensors", read, 1)
    model.transformer.ln_f.weight.data[0] = torch.nan
    ids = torch.tensor([[1]])
    return silent, written(lambda: model.generate(ids, max_new_tokens=3, do_sample=False, pad_token_id=0))


def nanogpt_model(checkpoint: Path) -> tuple[str, str]:
    def read() -> bytes:
        saved = torch.load(checkpoint, weights_only=False)
        return b"".join(tensor.numpy().tobytes() for tensor in saved["model"].values())

    silent = changed_in_silence(checkpoint, read, 1)
    spec = importlib.util.spec_from_file_location("nanogpt_model", "model.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    model = module.GPT(module.GPTConfig(block_size=8, vocab_size=19, n_layer=1, n_head=2, n_embd=8)).eval()
    model.transformer.ln_f.weight.data[0] = torch.nan
    return silent, written(lambda: model.generate(torch.tensor([[1]]), 3, top_k=1))  # it has no greedy mode


def row(name: str, seen: Counter[str], ended: str, silent: str, nan: str) -> str:
    repeats = (
        f"{seen['bit-equal']} of {seen['resumed']}" if seen["repeatable"] else "not even two undisturbed runs agree"
    )
    kills = f"{seen['kills']} | {seen['did not resume']} | {seen['nothing left']} | {repeats}"
    return f"| {name} | {kills} | {ended} | {silent} | {nan} |"


def main() -> None:
    parser = argparse.ArgumentParser("python -m tests.peers")
    parser.add_argument("--nanogpt", type=Path, required=True)
    parser.add_argument("--kills", type=int, default=40)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    os.chdir(options.nanogpt)
    data = Path("data/faults")
    data.mkdir(parents=True, exist_ok=True)
    for name in ("train.bin", "val.bin"):
        (np.arange(400) % 19).astype(np.uint16).tofile(data / name)
    (data / "meta.pkl").write_bytes(pickle.dumps({"vocab_size": 19}))
    rows = [
        "| | kills | newest checkpoint did not resume | and no other was left | resumed runs that ended bit-equal "
        "| SIGTERM | bits flipped in the weights and not noticed | a nan in the weights writes |",
        "|---|--:|--:|--:|---|---|--:|---|",
    ]
    memory = Path("/dev/shm")
    for name, run in (("this package", ours), ("`transformers.Trainer`", trainer), ("nanoGPT", nanogpt)):
        with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as path:
            folder = Path(path)
            seen, whole = killed(run, options.kills, options.seed, folder)
            ended = terminated(run, whole, folder)
            if run is nanogpt:
                silent, nan = nanogpt_model(folder / "unbroken" / "ckpt.pt")
            else:
                silent, nan = (our_model if run is ours else their_model)(folder / "model")
        rows.append(row(name, seen, ended, silent, nan))
        print(rows[-1], flush=True)
    store("\n".join(rows), marks=(START, END))


if __name__ == "__main__":
    main()
