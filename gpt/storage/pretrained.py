"""How do GPT-2's released weights come into our model, and ours out to others?

A model is a folder: `config.json` (its sizes) and `model.safetensors` (its tensors, never pickled: a pickle can run
code). The released files say `h.0.attn.c_attn.weight` where we say `blocks.0.attention.qkv.weight`; `MODULES` below
is the one table between the two. What we save has a third file, `SHA256SUMS`: a weight with a flipped bit is still a
weight, and only a checksum tells. DEEP_THEORY_GUIDE.md, Part 5.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gpt.config import GPTConfig
from gpt.model import GPT
from gpt.storage.tokenizer_files import load_tokenizer
from gpt.support.extras import needs
from gpt.support.files import (
    CHECKSUMS,
    atomic_file,
    flush,
    read_checksums,
    read_json,
    sha256,
    temporary_beside,
    write_checksums,
)
from gpt.tokens import Tokenizer, gpt2_tokenizer

RELEASED = ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl")  # at huggingface.co/openai-community
BUNDLED = {"tinyshakespeare": Path(__file__).parent / "tinyshakespeare"}

# The released code calls its linear layers Conv1D and stores their weights [in, out]. torch.nn.Linear has [out, in].
AS_IS, TRANSPOSED = False, True
MODULES = (
    # released            ours                               the file holds its weight
    ("wte",               "token_embedding",                 AS_IS),
    ("wpe",               "position_embedding",              AS_IS),
    ("h.{i}.ln_1",        "blocks.{i}.attention_norm",       AS_IS),
    ("h.{i}.attn.c_attn", "blocks.{i}.attention.qkv",        TRANSPOSED),
    ("h.{i}.attn.c_proj", "blocks.{i}.attention.projection", TRANSPOSED),
    ("h.{i}.ln_2",        "blocks.{i}.feed_forward_norm",    AS_IS),
    ("h.{i}.mlp.c_fc",    "blocks.{i}.feed_forward.expand",  TRANSPOSED),
    ("h.{i}.mlp.c_proj",  "blocks.{i}.feed_forward.project", TRANSPOSED),
    ("ln_f",              "final_norm",                      AS_IS),
)  # fmt: skip
PREFIX, HEAD = "transformer.", "lm_head.weight"  # Files of the whole language model have the prefix, others not.
MASK = re.compile(r"h\.\d+\.attn\.(bias|masked_bias)")  # Older files hold each layer's causal mask. It is no weight.

# Anything else, whole numbers say, would be a quantised model, whose scales we do not know.
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)

# What our model can be, in the words of config.json. The first value is written, and taken for a missing field.
ALLOWED: dict[str, tuple] = {
    "model_type": ("gpt2",),
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),  # two names of the tanh form
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,),
    "tie_word_embeddings": (True,),
}
# In the order of GPTConfig's fields.
SIZES = ("n_positions", "vocab_size", "n_layer", "n_head", "n_embd")
DROPOUTS = ("embd_pdrop", "attn_pdrop", "resid_pdrop")
END_OF_TEXT_ID = 50256
CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer.json"
PENDING = ".pending"  # the folder of files that are saved in full, but have not all moved to their places
LARGEST = 2**28  # of any size: far beyond every GPT-2, and small enough that no product overflows


class Stored(NamedTuple):
    """One tensor of a released file: our name for it, whether it is our tensor transposed, its shape in the file."""

    ours: str
    transposed: bool
    shape: list[int]


def load_pretrained(name: str | Path) -> GPT:
    """A model with its weights, in eval mode (no dropout), as transformers does it; `model.train()` for training.

    name is "gpt2", "gpt2-medium", "gpt2-large" or "gpt2-xl" (a download of 0.5 to 6 GB, kept by huggingface_hub),
    "tinyshakespeare" (bundled), or a folder that `save_pretrained` or transformers wrote. A name comes before a
    folder of that name: write "./gpt2" for the folder. Half-precision files load as float32.
    Files that a SHA256SUMS in the folder lists must match it.
    Raises ValueError for an unknown name, a damaged file and for whatever our GPT-2 is not; OSError without a network.
    """
    if name in RELEASED:
        return _load(_download(str(name), CONFIG), [_download(str(name), WEIGHTS)])
    folder = _folder(name)
    config, files = _place(folder, CONFIG), _weight_files(folder)
    _check(folder, [config, *files])
    return _load(config, files)


def load_pretrained_tokenizer(name: str | Path) -> Tokenizer:
    """The tokenizer that the model of this name was trained with.

    A folder without a tokenizer.json has GPT-2's own, if its model has as many tokens. Raises ValueError for an
    unknown name or if there is none; OSError if GPT-2's vocabulary cannot be downloaded.
    """
    if name in RELEASED:
        return gpt2_tokenizer()
    folder = _folder(name)
    path = _place(folder, TOKENIZER)
    _check(folder, [path])
    if path.is_file() and "type" in read_json(path):  # transformers' own file of that name has no such field
        return load_tokenizer(path)
    vocab_size = _read_config(_place(folder, CONFIG)).vocab_size
    if vocab_size != GPTConfig.gpt2_small().vocab_size:
        raise ValueError(f"{folder} holds no tokenizer.json of ours, and with {vocab_size} tokens it is not GPT-2's")
    return gpt2_tokenizer()


def save_pretrained(model: GPT, folder: str | Path, tokenizer: Tokenizer | None = None) -> None:
    """Write config.json, model.safetensors and, if given, tokenizer.json, in the layout that transformers loads too.

    And SHA256SUMS, their checksums. Files of other names in the folder stay as they are, and so does a tokenizer.json
    if no tokenizer is given. A full disk or a kill, at any moment, leaves the old model or the new one, whole.
    transformers has no GPT-2 without biases, so such a model is saved with biases of zero and "bias": false in
    config.json. Raises TypeError if tokenizer is not a Tokenizer, ValueError if it has more tokens than the model,
    OSError naming the folder if it cannot be written.
    """
    if tokenizer is not None and not isinstance(tokenizer, Tokenizer):
        raise TypeError(f"tokenizer must be a gpt.Tokenizer, got {type(tokenizer).__name__}")
    if tokenizer is not None and tokenizer.vocab_size > model.config.vocab_size:
        raise ValueError(
            f"tokenizer must have at most vocab_size={model.config.vocab_size} tokens, got {tokenizer.vocab_size}"
        )
    config = json.dumps(_to_json(model.config), indent=2) + "\n"
    writers = {
        CONFIG: lambda path: path.write_text(config),
        WEIGHTS: lambda path: save_file(_to_released(model), path, metadata={"format": "pt"}),
    }
    if tokenizer is not None:
        writers[TOKENIZER] = tokenizer.save
    folder = Path(folder)
    try:
        with temporary_beside(folder / PENDING) as temporary:
            temporary.mkdir()
            for name, write in writers.items():
                with atomic_file(temporary / name) as path:
                    write(path)
            write_checksums(temporary, writers)
            flush(temporary / CHECKSUMS)
            flush(temporary)
            _settle(folder)  # what a killed save has left
            os.rename(temporary, folder / PENDING)  # At this moment the new model takes the place of the old.
            flush(folder)
            _settle(folder)
    except (OSError, SafetensorError) as error:
        raise OSError(f"the model could not be saved in {folder}: {error}") from error


# --- where the files are


def _folder(name: str | Path) -> Path:
    if not isinstance(name, str | Path):
        raise TypeError(f"name must be a str or a Path, got {name!r}")
    folder = BUNDLED.get(str(name), Path(name))
    if not folder.is_dir():
        names = ", ".join(f'"{n}"' for n in (*RELEASED, *BUNDLED))
        raise ValueError(f'name must be {names} or a folder with config.json and model.safetensors, got "{name}"')
    return folder


def _place(folder: Path, name: str) -> Path:
    """Where a file of the model is now: a save that was killed at its end has left it in the folder PENDING."""
    pending = folder / PENDING / name
    return pending if pending.is_file() else folder / name


def _settle(folder: Path) -> None:
    """Move the files of PENDING, if it is there, to their places: all of them, or those that a kill left behind."""
    pending = folder / PENDING
    if pending.is_dir():
        for path in pending.iterdir():
            os.replace(path, folder / path.name)
        flush(folder)
        pending.rmdir()


def _check(folder: Path, files: list[Path]) -> None:
    """Raise ValueError if a file is listed in the folder's SHA256SUMS with another checksum than it has."""
    path = _place(folder, CHECKSUMS)
    checksums = read_checksums(path) if path.is_file() else {}
    for file in files:
        if file.name in checksums and not file.is_file():
            raise ValueError(f"{file} is missing, but {path} lists it")
        if file.name in checksums and checksums[file.name] != sha256(file):
            raise ValueError(
                f"{file} does not match its checksum in {CHECKSUMS}: it is damaged, or it was changed on purpose after "
                f"it was saved; then delete {path}"
            )


def _download(name: str, file: str) -> Path:
    needs("hub", "huggingface_hub")
    from huggingface_hub import hf_hub_download  # Here: it takes a third of a second, and only four names need it.

    try:
        return Path(hf_hub_download(f"openai-community/{name}", file))
    except Exception as error:  # A dozen classes of several libraries; not all are OSErrors.
        raise OSError(
            f'{file} of "{name}" is missing and could not be downloaded from huggingface.co. Connect to a network '
            'once, give the folder of a copy that you have, or take "tinyshakespeare", which needs no download. '
            f"The cause: {error}"
        ) from error


def _weight_files(folder: Path) -> list[Path]:
    """model.safetensors, or the parts of it that an index lists."""
    single, index = _place(folder, WEIGHTS), folder / "model.safetensors.index.json"
    if single.is_file():
        return [single]
    if index.is_file():
        parts = read_json(index).get("weight_map")
        if not isinstance(parts, dict):
            raise ValueError(f'{index} is damaged: it has no "weight_map"')
        return [folder / name for name in sorted({Path(str(part)).name for part in parts.values()})]
    pickled = sorted(file.name for file in folder.glob("pytorch_model*.bin"))
    why = f"; its {pickled[0]} is a pickle, which could run any code when read: convert it first" if pickled else ""
    raise ValueError(f"{folder} holds no model.safetensors{why}")


# --- config.json


def _fields(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError(f"{path.parent} holds no {path.name}; a model is a folder with config.json, model.safetensors")
    return read_json(path)


def _read_config(path: Path) -> GPTConfig:
    fields = _fields(path)
    fields["n_positions"] = fields.get("n_positions", fields.get("n_ctx"))  # n_ctx: the older name
    dropouts = {name: fields.get(name, 0.1) for name in DROPOUTS}
    try:
        if absent := [name for name in SIZES if fields.get(name) is None]:
            raise ValueError(f"{_listed(absent)} must be given")
        if len(set(dropouts.values())) > 1:
            raise ValueError(f"our model has one dropout, so {_listed(DROPOUTS)} must be equal, got {dropouts}")
        sizes = [fields[name] for name in SIZES]
        for name, size in zip(SIZES, sizes, strict=True):
            if isinstance(size, int) and size > LARGEST:
                raise ValueError(f"{name} must be at most {LARGEST:,}, got {size:,}")
        config = GPTConfig(*sizes, dropout=dropouts["attn_pdrop"], bias=fields.get("bias", True))
        for name, allowed in (ALLOWED | {"n_inner": (None, config.d_ff)}).items():
            if fields.get(name, allowed[0]) not in allowed:
                raise ValueError(f"{name} must be {' or '.join(map(repr, allowed))}, got {fields[name]!r}")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path} does not describe a GPT-2 of ours: {error}") from error
    return config


def _to_json(config: GPTConfig) -> dict[str, Any]:
    end_of_text = END_OF_TEXT_ID if config.vocab_size > END_OF_TEXT_ID else None
    return {
        "architectures": ["GPT2LMHeadModel"],
        **{name: allowed[0] for name, allowed in ALLOWED.items()},
        **dict(zip(SIZES, astuple(config), strict=False)),
        "n_inner": None,
        **dict.fromkeys(DROPOUTS, config.dropout),
        "bos_token_id": end_of_text,
        "eos_token_id": end_of_text,
        "bias": config.bias,  # ours: transformers keeps it and does not use it
    }


# --- tensors


def _layout(config: GPTConfig) -> dict[str, Stored]:
    """Every tensor of a released file of these sizes, by its released name. All have biases."""
    with torch.device("meta"):  # shapes without memory
        ours = GPT(replace(config, bias=True)).state_dict()
    layout = {}
    for released, module, transposed in MODULES:
        for i in range(config.n_layer if "{i}" in module else 1):
            for kind in ("weight", "bias"):
                name = f"{module}.{kind}".format(i=i)
                if name in ours:  # the embeddings have no bias
                    shape = list(ours[name].t().shape if transposed else ours[name].shape)
                    layout[f"{released}.{kind}".format(i=i)] = Stored(name, transposed, shape)
    return layout


def _to_released(model: GPT) -> dict[str, Tensor]:
    state, tensors = model.state_dict(), {}
    for name, stored in _layout(model.config).items():
        zeros = model.token_embedding.weight.new_zeros  # for the biases of a model without
        tensor = state[stored.ours] if stored.ours in state else zeros(stored.shape)
        tensors[PREFIX + name] = (tensor.t() if stored.transposed else tensor).contiguous()
    return tensors


def _load(config_file: Path, files: list[Path]) -> GPT:
    config = _read_config(config_file)
    stored = sum(map(_number_of_tensors, files))
    if config.n_layer > stored:  # found out now: to lay out a million layers takes minutes
        raise ValueError(f"{config_file} says n_layer = {config.n_layer:,}, but {_listed(files)} hold {stored} tensors")
    with torch.device("meta"):  # No memory and no random numbers for weights that are replaced at once.
        model = GPT(config)
    model.load_state_dict(_from_released(files, config), assign=True)
    return model.eval()


def _from_released(files: list[Path], config: GPTConfig) -> dict[str, Tensor]:
    """Our state dict. Each tensor is checked and copied on its own, so that no second model fills the memory."""
    missing, state, head = _layout(config), {}, None
    for file, name, tensor in _tensors(files):
        if tensor.dtype not in DTYPES:
            raise ValueError(f"{file}: {name} must be of {_listed(DTYPES)}, got {tensor.dtype}")
        if name == HEAD:
            head = tensor
            continue
        if name not in missing:
            raise ValueError(f"{file}: unexpected tensor {name}: a GPT-2 of {config} does not have it")
        stored = missing.pop(name)
        if list(tensor.shape) != stored.shape:
            raise ValueError(f"{file}: {name} must have the shape {stored.shape}, got {list(tensor.shape)}")
        if not tensor.isfinite().all():
            raise ValueError(f"{file}: {name} must be finite, but it holds a nan or an infinity")
        if config.bias or not name.endswith(".bias"):
            tensor = tensor.t() if stored.transposed else tensor
            # A copy: the tensors of safetensors are views of the file.
            dtype = torch.promote_types(tensor.dtype, torch.float32)
            state[stored.ours] = tensor.to(dtype, memory_format=torch.contiguous_format, copy=True)
        elif tensor.any():
            raise ValueError(f'{file}: {name} must be zero, as config.json says "bias": false')
    if missing:
        raise ValueError(f"{_listed(files)}: missing tensor {_listed(list(missing)[:3])} ({len(missing)} in all)")
    table = state["token_embedding.weight"]
    if head is not None and not torch.equal(head.to(table.dtype), table):
        raise ValueError(f"{_listed(files)}: {HEAD} must equal wte.weight: our head is tied to the embedding")
    return state


def _tensors(files: list[Path]) -> Iterator[tuple[Path, str, Tensor]]:
    """(file, released name without prefix, tensor), the masks left out."""
    for file in files:
        with _opened(file) as opened:
            for full_name in opened.keys():  # noqa: SIM118 (not a dict)
                name = full_name.removeprefix(PREFIX)
                if not MASK.fullmatch(name):
                    yield file, name, opened.get_tensor(full_name)


@contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A weights file, open. Raises ValueError, naming it, if it is missing or damaged."""
    try:
        with safe_open(file, "pt") as opened:
            yield opened
    except (SafetensorError, FileNotFoundError) as error:
        raise ValueError(f"{file} is missing, damaged or truncated: {error}") from error


def _number_of_tensors(file: Path) -> int:
    with _opened(file) as opened:
        return len(opened.keys())


def _listed(items: Iterable) -> str:
    return ", ".join(map(str, items))
