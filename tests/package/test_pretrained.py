"""Weights come in and go out unchanged: against transformers' GPT-2, through every layout, or not at all.

The oracle is a tiny random GPT-2 of `transformers`, built from a config. Its weights are made large and its biases
and gains uneven, so that no tensor can be mixed up or dropped unseen.
"""

from __future__ import annotations

import dataclasses
import errno
import json
import os
import pickle
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from tests.comparing import close
from tests.concepts.test_tokens import gpt2_files

# n_layer, n_head, n_embd, n_positions, vocab_size
SHAPES = [(1, 1, 8, 8, 17), (2, 4, 64, 64, 256), (3, 5, 40, 33, 101), (6, 2, 24, 128, 65), (2, 12, 96, 16, 300)]


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def uneven(model, seed=0):
    """The same model with noise on every parameter: its logits reach from -9 to 9."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def random_tokens(config, batch=2, seed=1):
    length = config.n_positions if hasattr(config, "n_positions") else config.context_size
    return torch.randint(config.vocab_size, (batch, length), generator=torch.Generator().manual_seed(seed))


def their_model(transformers, n_layer=2, n_head=4, n_embd=32, n_positions=80, vocab_size=97, seed=0):
    torch.manual_seed(seed)
    sizes = {"n_layer": n_layer, "n_head": n_head, "n_embd": n_embd, "n_positions": n_positions}
    no_end = {"bos_token_id": None, "eos_token_id": None}  # their default, 50256, is outside these vocabularies
    config = transformers.GPT2Config(**sizes, vocab_size=vocab_size, **no_end)
    return uneven(transformers.GPT2LMHeadModel(config), seed)


def our_model(gpt, bias=True, **changes):
    sizes = {"context_size": 24, "vocab_size": 61, "n_layer": 2, "n_head": 3, "n_embd": 24, "dropout": 0.1}
    torch.manual_seed(0)
    return uneven(gpt.GPT(gpt.GPTConfig(**{**sizes, **changes}, bias=bias)))


@pytest.fixture
def saved(gpt, tmp_path):
    """(our model, a folder that holds it), without checksums, as other programs write it."""
    model = our_model(gpt)
    gpt.pretrained.save_pretrained(model, tmp_path / "model")
    (tmp_path / "model" / "SHA256SUMS").unlink()
    return model, tmp_path / "model"


def same(a, b):
    """Bit for bit: the same names, dtypes and numbers."""
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(a[k].dtype == b[k].dtype and torch.equal(a[k], b[k]) for k in a)


def edit_tensors(folder, edit):
    """Rewrite the weights of a folder: `edit` changes the dict of tensors in place."""
    tensors = load_file(folder / "model.safetensors")
    edit(tensors)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")


def edit_config(folder, **fields):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value != "absent"}))


def content(folder):
    """Every file of a folder and its bytes."""
    return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


# --- the same function as transformers


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    # Measured: at most 2.9e-6 and 1.1e-14.
    [(torch.float32, 1e-5), (torch.float64, 1e-10)],
    ids=["float32", "float64"],
)
def test_loaded_weights_give_the_logits_that_transformers_gives(gpt, transformers, tmp_path, shape, dtype, tolerance):
    theirs = their_model(transformers, *shape)
    theirs.save_pretrained(tmp_path)
    ours = gpt.GPT.from_pretrained(tmp_path).to(dtype)
    tokens = random_tokens(theirs.config)
    with torch.no_grad():
        logits, expected = ours(tokens)[0], theirs.to(dtype)(tokens).logits
    assert logits.shape == expected.shape
    assert expected.std() > 0.5  # the numbers are not all near 0
    close(logits, expected, tolerance)


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_transformers_loads_what_we_save(gpt, transformers, tmp_path, shape, bias):
    n_layer, n_head, n_embd, context_size, vocab_size = shape
    sizes = {"context_size": context_size, "vocab_size": vocab_size, "n_head": n_head, "n_embd": n_embd}
    ours = our_model(gpt, bias, n_layer=n_layer, **sizes)
    ours.save_pretrained(tmp_path)
    theirs, report = transformers.GPT2LMHeadModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values())  # nothing missing, unexpected or mismatched
    tokens = random_tokens(ours.config)
    with torch.no_grad():
        close(ours(tokens)[0], theirs(tokens).logits, 1e-5)  # measured: at most 3.1e-6
        close(ours.double()(tokens)[0], theirs.double()(tokens).logits, 1e-10)  # measured: at most 8.9e-15


@pytest.mark.parametrize("seed", range(3))
def test_sixty_four_greedy_tokens_equal_those_of_transformers(gpt, transformers, tmp_path, seed):
    theirs = their_model(transformers, seed=seed)
    theirs.save_pretrained(tmp_path)
    prompt = random_tokens(theirs.config, seed=seed)[:, :5]
    expected = theirs.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=64, do_sample=False, pad_token_id=0
    )
    continued = gpt.GPT.from_pretrained(tmp_path).generate(prompt, 64, temperature=0)
    assert continued.shape == (2, 5 + 64)
    assert len(set(expected[:, 5:].flatten().tolist())) > 5  # no model that only repeats itself
    assert continued.tolist() == expected.tolist()


# --- round trips


@pytest.mark.parametrize("bias", [True, False], ids=["biases", "no biases"])
def test_saving_and_loading_changes_no_bit(gpt, tmp_path, bias):
    model = our_model(gpt, bias)
    model.save_pretrained(tmp_path)
    loaded = gpt.GPT.from_pretrained(tmp_path)
    assert loaded.config == model.config
    assert same(loaded, model)
    assert sorted(content(tmp_path)) == ["SHA256SUMS", "config.json", "model.safetensors"]
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}  # versions of transformers before 5 load nothing else


def test_a_loaded_model_is_whole_trainable_and_in_eval_mode(gpt, saved):
    loaded = gpt.pretrained.load_pretrained(saved[1])
    d, n_layer, vocab_size, context_size = 24, 2, 61, 24
    assert loaded.num_parameters() == vocab_size * d + context_size * d + n_layer * (12 * d**2 + 13 * d) + 2 * d
    assert not any(module.training for module in loaded.modules())
    assert all(p.requires_grad and p.is_leaf and not p.is_meta and p.is_contiguous() for p in loaded.parameters())


def test_the_head_stays_tied_after_loading_and_after_a_change_of_dtype(gpt, saved):
    loaded = gpt.pretrained.load_pretrained(saved[1])
    for model in (loaded, loaded.to(torch.float64)):
        hidden = model.hidden(torch.tensor([[1, 2, 3]]))
        before = model.head(hidden)
        with torch.no_grad():
            model.token_embedding.weight[7] += 1.0  # one row of the embedding is one logit of the head
        change = model.head(hidden) - before
        close(change[..., 7], hidden.sum(-1), 1e-4)
        assert not change[..., :7].any()
        assert not change[..., 8:].any()


@pytest.mark.parametrize(
    ("stored", "loaded"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_half_precision_files_load_as_float32_and_float64_stays(gpt, tmp_path, stored, loaded):
    model = our_model(gpt).to(stored)
    model.save_pretrained(tmp_path)
    assert load_file(tmp_path / "model.safetensors")["transformer.wte.weight"].dtype == stored
    assert same(gpt.GPT.from_pretrained(tmp_path), model.to(loaded))  # widening is exact


def test_loading_draws_no_random_numbers(gpt, saved):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    gpt.pretrained.load_pretrained(saved[1])
    close(torch.rand(3), expected)


def test_a_loaded_model_does_not_hang_on_its_file(gpt, saved):
    model, folder = saved
    loaded = gpt.pretrained.load_pretrained(folder)
    with open(folder / "model.safetensors", "rb+") as file:  # in place, as a careless program would
        file.write(bytes((folder / "model.safetensors").stat().st_size))
    assert same(loaded, model)


# --- layouts of the released files


def without_prefix(tensors):
    for name in list(tensors):
        tensors[name.removeprefix("transformer.")] = tensors.pop(name)


def with_masks(tensors):
    for name in [name for name in tensors if name.endswith("c_attn.weight")]:
        module = name.removesuffix("c_attn.weight")
        tensors[module + "bias"] = torch.ones(24, 24, dtype=torch.uint8).tril()[None, None]
        tensors[module + "masked_bias"] = torch.tensor(-1e4)


def with_head(tensors):
    tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()


LAYOUTS = [[], [without_prefix], [with_masks], [with_head], [with_masks, without_prefix], [with_masks, with_head]]


@pytest.mark.parametrize("changes", LAYOUTS, ids=lambda changes: "+".join(f.__name__ for f in changes) or "new")
def test_old_and_new_key_layouts_load_alike(gpt, saved, changes):
    model, folder = saved
    for change in changes:
        edit_tensors(folder, change)
    assert same(gpt.pretrained.load_pretrained(folder), model)


def test_an_old_config_says_n_ctx_for_n_positions_and_leaves_much_out(gpt, saved):
    model, folder = saved
    defaults = ("scale_attn_weights", "scale_attn_by_inverse_layer_idx", "add_cross_attention", "n_inner", "bias")
    edit_config(folder, n_ctx=24, n_positions="absent", **dict.fromkeys(defaults, "absent"))
    loaded = gpt.pretrained.load_pretrained(folder)
    assert loaded.config == model.config
    assert same(loaded, model)


def test_a_model_in_several_files_loads_like_one_in_a_single_file(gpt, transformers, tmp_path):
    theirs = their_model(transformers)
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "many", max_shard_size="20KB")
    parts = sorted((tmp_path / "many").glob("model-*.safetensors"))
    assert len(parts) > 2
    one, many = (gpt.pretrained.load_pretrained(tmp_path / name) for name in ("one", "many"))
    assert same(one, many)
    parts[1].unlink()
    with pytest.raises(ValueError, match=parts[1].name):
        gpt.pretrained.load_pretrained(tmp_path / "many")


# --- the hub


@pytest.mark.parametrize("name", ["gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"])
def test_a_released_name_is_fetched_from_the_hub(gpt, saved, monkeypatch, name):
    model, folder = saved
    asked = []

    def download(repo, file):
        asked.append((repo, file))
        return str(folder / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    assert same(gpt.GPT.from_pretrained(name), model)
    assert asked == [(f"openai-community/{name}", "config.json"), (f"openai-community/{name}", "model.safetensors")]


@pytest.mark.parametrize("failure", [LocalEntryNotFoundError("no route"), RuntimeError("no route")], ids=repr)
def test_a_failed_download_says_what_to_do_instead(gpt, monkeypatch, failure):
    def download(repo, file):
        raise failure

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(OSError, match=r'"gpt2-xl".*network.*folder.*"tinyshakespeare".*no route') as raised:
        gpt.GPT.from_pretrained("gpt2-xl")
    assert raised.value.__cause__ is failure


def test_offline_mode_gives_the_same_error_at_once(gpt, monkeypatch, tmp_path):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)  # what HF_HUB_OFFLINE=1 sets
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(OSError, match=r'config.json of "gpt2" is missing'):
        gpt.GPT.from_pretrained("gpt2")


# --- what is refused


def refused(gpt, folder, *words):
    """The one line that says why a folder does not load; it must hold all the words, and change nothing."""
    before = content(folder)
    with pytest.raises(ValueError, match=re.escape(str(words[0]))) as raised:
        gpt.pretrained.load_pretrained(folder)
    assert content(folder) == before
    for word in words:
        assert str(word) in str(raised.value)


@pytest.mark.parametrize("kept", [0, 1, 7, 8, 9, 100, 0.1, 0.5, 0.9, -1], ids=str)
def test_a_truncated_file_is_refused_by_name(gpt, saved, kept):
    path = saved[1] / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(kept * len(whole)) if isinstance(kept, float) else kept])
    refused(gpt, saved[1], path, "truncated")


@pytest.mark.parametrize(
    ("tensor", "edit", "found"),
    [
        ("wte.weight", lambda t: t[:-1], [60, 24]),
        ("wpe.weight", lambda t: t[:-1], [23, 24]),
        ("h.1.attn.c_attn.weight", lambda t: t.t(), [72, 24]),  # as a Linear stores it
        ("h.0.attn.c_attn.weight", lambda t: t.flatten(), [1728]),
        ("h.0.mlp.c_proj.bias", lambda t: t[None], [1, 24]),
        ("ln_f.weight", lambda t: t.repeat(2), [48]),
    ],
)
def test_a_reshaped_tensor_is_refused_with_both_shapes(gpt, saved, tensor, edit, found):
    name = f"transformer.{tensor}"
    expected = list(load_file(saved[1] / "model.safetensors")[name].shape)
    edit_tensors(saved[1], lambda tensors: tensors.update({name: edit(tensors[name])}))
    refused(gpt, saved[1], saved[1] / "model.safetensors", tensor, expected, found)


def test_a_missing_tensor_is_refused_by_name(gpt, saved):
    edit_tensors(saved[1], lambda tensors: tensors.pop("transformer.h.1.mlp.c_fc.bias"))
    refused(gpt, saved[1], saved[1] / "model.safetensors", "missing tensor h.1.mlp.c_fc.bias", "1 in all")


@pytest.mark.parametrize("name", ["transformer.h.0.attn.rotary", "transformer.h.2.ln_1.weight", "score.weight"])
def test_an_unexpected_tensor_is_refused_by_name(gpt, saved, name):
    edit_tensors(saved[1], lambda tensors: tensors.update({name: torch.zeros(24)}))
    refused(gpt, saved[1], saved[1] / "model.safetensors", "unexpected tensor", name.removeprefix("transformer."))


def test_a_tensor_that_is_there_twice_is_refused(gpt, saved):
    edit_tensors(saved[1], lambda tensors: tensors.update({"ln_f.bias": torch.zeros(24)}))
    refused(gpt, saved[1], "ln_f.bias")


def test_a_head_of_its_own_is_refused(gpt, saved):
    with_other_head = torch.arange(61 * 24.0).view(61, 24)
    edit_tensors(saved[1], lambda tensors: tensors.update({"lm_head.weight": with_other_head}))
    refused(gpt, saved[1], saved[1] / "model.safetensors", "lm_head.weight", "tied")


def test_a_quantised_tensor_is_refused(gpt, saved):
    name = "transformer.h.0.attn.c_attn.weight"
    edit_tensors(saved[1], lambda tensors: tensors.update({name: tensors[name].to(torch.int8)}))
    refused(gpt, saved[1], "h.0.attn.c_attn.weight", "int8")


def test_biases_in_a_model_without_biases_are_refused(gpt, saved):
    edit_config(saved[1], bias=False)
    refused(gpt, saved[1], "bias", "must be zero")


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("model_type", "gpt_neo"),
        ("activation_function", "gelu"),
        ("activation_function", "relu"),
        ("layer_norm_epsilon", 1e-6),
        ("scale_attn_weights", False),
        ("scale_attn_by_inverse_layer_idx", True),
        ("add_cross_attention", True),
        ("tie_word_embeddings", False),
        ("n_inner", 100),
        ("resid_pdrop", 0.5),
        ("n_layer", "absent"),
        ("n_head", "3"),
        ("n_head", 5),
        ("vocab_size", None),
        ("bias", "no"),
    ],
)
def test_a_model_that_ours_cannot_be_is_refused_by_field(gpt, saved, field, value):
    edit_config(saved[1], **{field: value})
    refused(gpt, saved[1], saved[1] / "config.json", field)


@pytest.mark.parametrize(("field", "value"), [("activation_function", "gelu_pytorch_tanh"), ("n_inner", 4 * 24)])
def test_another_name_for_the_same_thing_is_accepted(gpt, saved, field, value):
    edit_config(saved[1], **{field: value})
    assert same(gpt.pretrained.load_pretrained(saved[1]), saved[0])


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "\udc80"], ids=repr)
def test_a_damaged_config_is_refused_by_name(gpt, saved, text):
    (saved[1] / "config.json").write_text(text, errors="surrogateescape")
    refused(gpt, saved[1], saved[1] / "config.json", "damaged")


def test_a_folder_without_its_files_is_refused(gpt, saved, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(gpt, tmp_path / "empty", "model.safetensors")
    (saved[1] / "config.json").unlink()
    refused(gpt, saved[1], "config.json")


def test_a_pickle_is_never_opened(gpt, saved, tmp_path):
    class Trap:
        def __reduce__(self):
            return Path.touch, (tmp_path / "sprung",)

    (saved[1] / "model.safetensors").unlink()
    (saved[1] / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(gpt, saved[1], "pytorch_model.bin", "pickle")
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("name", ["gpt3", "openai-community/gpt2", "no/such/folder", __file__])
def test_an_unknown_name_is_refused_with_those_allowed(gpt, name):
    with pytest.raises(ValueError, match=r'name .*"gpt2-xl", "tinyshakespeare" or a folder'):
        gpt.GPT.from_pretrained(name)


def test_a_name_is_text_or_a_path(gpt):
    with pytest.raises(TypeError, match="name must be a str or a Path, got 124"):
        gpt.GPT.from_pretrained(124)


# --- a save that fails


FAILURES = [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("No space left"), KeyboardInterrupt()]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: type(failure).__name__)
@pytest.mark.parametrize("place", ["weights", "tokenizer"])
def test_a_save_that_breaks_off_leaves_the_old_model(gpt, saved, monkeypatch, failure, place):
    old, folder = saved
    before = content(folder)
    tokenizer = gpt.CharTokenizer.from_text("abc")

    def break_off(*arguments, **options):
        for path in filter(lambda argument: isinstance(argument, Path), arguments):
            path.write_bytes(b"half a fi")
        raise failure

    monkeypatch.setattr(*{"weights": (gpt.pretrained, "save_file"), "tokenizer": (tokenizer, "save")}[place], break_off)
    expected = OSError if isinstance(failure, Exception) else KeyboardInterrupt
    with pytest.raises(expected) as raised:
        gpt.pretrained.save_pretrained(our_model(gpt, n_layer=3), folder, tokenizer)  # of another shape
    if expected is OSError:
        assert str(folder) in str(raised.value)
        assert "No space left" in str(raised.value)
    assert content(folder) == before
    assert same(gpt.pretrained.load_pretrained(folder), old)


def test_a_full_disk_is_an_oserror_that_names_the_folder(gpt, saved):
    resource = pytest.importorskip("resource")
    old, folder = saved
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))  # no file may grow beyond this: it ends like a full disk
    try:
        with pytest.raises(OSError, match=f"could not be saved in {folder}"):
            our_model(gpt, n_layer=3).save_pretrained(folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert sorted(content(folder)) == ["config.json", "model.safetensors"]
    assert same(gpt.pretrained.load_pretrained(folder), old)


def test_saving_where_a_file_is_in_the_way_is_an_oserror(gpt, tmp_path):
    (tmp_path / "taken").write_text("mine")
    with pytest.raises(OSError, match="taken"):
        our_model(gpt).save_pretrained(tmp_path / "taken")
    assert (tmp_path / "taken").read_text() == "mine"


def test_saving_over_a_model_replaces_it(gpt, saved):
    new = our_model(gpt, n_layer=3, bias=False)
    new.save_pretrained(saved[1])
    assert same(gpt.pretrained.load_pretrained(saved[1]), new)


KILLED = """
import itertools, os, sys
from pathlib import Path
import torch
import gpt
from gpt.storage.pretrained import save_pretrained

def model(seed, n_layer):
    torch.manual_seed(seed)
    return gpt.GPT(gpt.GPTConfig(context_size=4, vocab_size=3, n_layer=n_layer, n_head=1, n_embd=4))

OLD = model(1, 1), gpt.CharTokenizer("abc")
NEW = model(2, 2), gpt.CharTokenizer("xyz")

def is_at(folder, pair):
    found = gpt.GPT.from_pretrained(folder)
    same = found.config == pair[0].config and torch.equal(found.token_embedding.weight, pair[0].token_embedding.weight)
    return same and gpt.load_pretrained_tokenizer(folder).itos == pair[1].itos

def save_and_die(folder, n, after):
    '''End the process at the n-th call that changes the disk, or right after it.'''
    calls = itertools.count(1)
    def deadly(real):
        def call(*args, **options):
            if next(calls) != n:
                return real(*args, **options)
            try:
                after and real(*args, **options)
            finally:
                os._exit(9)
        return call
    for name in ("rename", "replace", "rmdir", "unlink", "mkdir", "fsync"):
        setattr(os, name, deadly(getattr(os, name)))
    save_pretrained(NEW[0], folder, NEW[1])
    os._exit(0)

folder = Path(sys.argv[1])
for n, after in itertools.product(range(1, 100), (False, True)):
    save_pretrained(OLD[0], folder, OLD[1])
    (folder / "record.json").write_text("mine")
    assert is_at(folder, OLD)
    child = os.fork() or save_and_die(folder, n, after)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    print(status, "old" if is_at(folder, OLD) else "new" if is_at(folder, NEW) else "neither")
    save_pretrained(NEW[0], folder, NEW[1])
    assert is_at(folder, NEW)
    assert (folder / "record.json").read_text() == "mine"
    names = ["SHA256SUMS", "config.json", "model.safetensors", "record.json", "tokenizer.json"]
    assert sorted(os.listdir(folder)) == names
    if status == 0:
        break
"""


def test_a_save_that_is_killed_at_any_step_leaves_the_old_model_or_the_new(tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "model").symlink_to(tmp_path / "elsewhere")  # a folder that no rename may replace
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model")], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    *killed, last = done.stdout.splitlines()
    assert last == "0 new"
    old, new = killed.count("9 old"), killed.count("9 new")
    assert killed == ["9 old"] * old + ["9 new"] * new  # it turns once
    assert old > 20
    assert new > 10
    assert (tmp_path / "model").is_symlink()


# --- checksums


@pytest.fixture
def whole(gpt, tmp_path):
    """(our model, a folder that holds it and a tokenizer), with checksums."""
    model = our_model(gpt)
    gpt.pretrained.save_pretrained(model, tmp_path / "model", gpt.CharTokenizer.from_text("to be, or not to be"))
    return model, tmp_path / "model"


def load_both(gpt, folder):
    gpt.pretrained.load_pretrained(folder)
    gpt.pretrained.load_pretrained_tokenizer(folder)


def test_a_saved_model_has_checksums_that_sha256sum_checks(whole):
    if not shutil.which("sha256sum"):
        pytest.skip("no sha256sum on this machine")
    done = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=whole[1], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["config.json: OK", "model.safetensors: OK", "tokenizer.json: OK", ""]


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", "tokenizer.json"])
def test_a_flipped_bit_anywhere_in_a_model_is_noticed(gpt, whole, name):
    path = whole[1] / name
    good = path.read_bytes()
    for i in range(0, len(good), max(1, len(good) // 100)):
        path.write_bytes(good[:i] + bytes([good[i] ^ 4]) + good[i + 1 :])
        with pytest.raises(ValueError, match=rf"{name} does not match its checksum in SHA256SUMS: it is damaged, or"):
            load_both(gpt, whole[1])
    path.unlink()
    with pytest.raises(ValueError, match=rf"{name} is missing|no {name}"):
        load_both(gpt, whole[1])
    path.write_bytes(good)
    load_both(gpt, whole[1])


def test_the_bundled_model_has_checksums(gpt):
    sums = gpt.files.read_checksums(gpt.pretrained.BUNDLED["tinyshakespeare"] / "SHA256SUMS")
    assert list(sums) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_files_that_no_checksum_lists_are_free(gpt, whole):
    model, folder = whole
    (folder / "record.json").write_text("{}")
    gpt.pretrained.save_pretrained(model, folder)  # keeps the tokenizer, and does not answer for it
    gpt.CharTokenizer.from_text("abc").save(folder / "tokenizer.json")
    assert gpt.pretrained.load_pretrained_tokenizer(folder).vocab_size == 3
    assert same(gpt.pretrained.load_pretrained(folder), model)


def test_weights_in_parts_are_held_against_their_checksums(gpt, whole):
    model, folder = whole
    (folder / "model.safetensors").rename(folder / "part-1.safetensors")
    index = {"weight_map": {"any": "part-1.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    gpt.files.write_checksums(folder, ["part-1.safetensors"])
    assert same(gpt.pretrained.load_pretrained(folder), model)
    part = folder / "part-1.safetensors"
    part.write_bytes(part.read_bytes()[:-1] + b"\x40")
    refused(gpt, folder, part, "checksum")


# --- the tokenizer beside the model


def test_the_tokenizer_is_saved_and_found_again(gpt, tmp_path):
    text = "to be, or not to be"
    tokenizer = gpt.CharTokenizer.from_text(text)
    gpt.pretrained.save_pretrained(our_model(gpt), tmp_path, tokenizer)
    loaded = gpt.pretrained.load_pretrained_tokenizer(tmp_path)
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text


def test_a_folder_with_gpt2s_vocabulary_size_has_gpt2s_tokenizer(gpt, tmp_path, monkeypatch):
    gpt.GPT(gpt.GPTConfig(context_size=4, n_layer=1, n_head=1, n_embd=2)).save_pretrained(tmp_path)
    monkeypatch.setattr(gpt.pretrained, "gpt2_tokenizer", lambda: "the tokenizer of GPT-2")
    assert gpt.load_pretrained_tokenizer(tmp_path) == "the tokenizer of GPT-2"


def test_a_tokenizer_file_of_transformers_is_left_to_transformers(gpt, tmp_path, monkeypatch):
    gpt.GPT(gpt.GPTConfig(context_size=4, n_layer=1, n_head=1, n_embd=2)).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model": {"type": "BPE"}}')
    monkeypatch.setattr(gpt.pretrained, "gpt2_tokenizer", lambda: "the tokenizer of GPT-2")
    assert gpt.load_pretrained_tokenizer(tmp_path) == "the tokenizer of GPT-2"


def test_gpt2s_tokenizer_is_saved_by_name(gpt, tmp_path):
    gpt2_files()
    model = gpt.GPT(gpt.GPTConfig(context_size=4, n_layer=1, n_head=1, n_embd=2))
    gpt.pretrained.save_pretrained(model, tmp_path, gpt.gpt2_tokenizer())
    assert json.loads((tmp_path / "tokenizer.json").read_text()) == {"type": "gpt2"}
    assert type(gpt.load_pretrained_tokenizer(tmp_path)) is gpt.tokens.GPT2Tokenizer


def test_a_folder_without_a_tokenizer_says_so(gpt, saved):
    with pytest.raises(ValueError, match=r"holds no tokenizer\.json of ours"):
        gpt.pretrained.load_pretrained_tokenizer(saved[1])


def test_a_tokenizer_larger_than_the_model_is_refused(gpt, tmp_path):
    tokenizer = gpt.CharTokenizer([chr(i) for i in range(100, 162)])
    with pytest.raises(ValueError, match="at most vocab_size=61 tokens, got 62"):
        gpt.pretrained.save_pretrained(our_model(gpt), tmp_path / "new", tokenizer)
    with pytest.raises(TypeError, match=r"tokenizer .*got str"):
        gpt.pretrained.save_pretrained(our_model(gpt), tmp_path / "new", "tokenizer.json")
    assert not (tmp_path / "new").exists()


def test_the_released_models_share_the_tokenizer_of_gpt2(gpt, monkeypatch):
    monkeypatch.setattr(gpt.pretrained, "gpt2_tokenizer", lambda: "GPT-2's own")
    for name in ("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"):
        assert gpt.pretrained.load_pretrained_tokenizer(name) == "GPT-2's own"


def test_a_model_with_the_vocabulary_of_gpt2_knows_its_end_of_text(gpt, tmp_path):
    for vocab_size, expected in ((50256, None), (50257, 50256), (50304, 50256)):
        our_model(gpt, vocab_size=vocab_size, n_layer=1, n_head=1, n_embd=2).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        assert (config["bos_token_id"], config["eos_token_id"]) == (expected, expected)


# --- the bundled model


def test_the_bundled_model_and_its_tokenizer_fit_each_other(gpt):
    model = gpt.GPT.from_pretrained("tinyshakespeare")
    tokenizer = gpt.pretrained.load_pretrained_tokenizer("tinyshakespeare")
    assert model.config.vocab_size == tokenizer.vocab_size == 65
    ids = torch.tensor([tokenizer.encode("First Citizen:\nBefore we proceed any further, hear me speak.")])
    assert model(ids[:, :-1], ids[:, 1:])[1] < 2.0  # nats per character; an untrained model has ln 65 = 4.17


def test_the_bundled_model_is_the_char_preset_and_small_enough_to_carry(gpt):
    folder = gpt.pretrained.BUNDLED["tinyshakespeare"]
    config = gpt.GPT.from_pretrained("tinyshakespeare").config
    assert dataclasses.replace(config, dropout=gpt.GPTConfig.char().dropout) == gpt.GPTConfig.char()
    assert (folder / "model.safetensors").stat().st_size <= 7_000_000


def test_the_bundled_model_has_the_loss_that_its_record_claims(gpt):
    """At most 1.52 nats per character over the whole last tenth of Tiny Shakespeare, in windows of 128."""
    record = json.loads((gpt.pretrained.BUNDLED["tinyshakespeare"] / "record.json").read_text())
    assert record["data"]["sha256"] == gpt.corpora.DOWNLOADS["tinyshakespeare"][1]
    assert record["held_out"]["loss"] == min(loss for _, loss in record["curve"]["validation"]) <= 1.52
    if not (Path(os.environ.get("GPT_DATA_DIR") or "data") / "tinyshakespeare.txt").exists():
        pytest.skip("Tiny Shakespeare is not at hand: python -m gpt data tinyshakespeare")
    model, tokenizer = (load("tinyshakespeare") for load in (gpt.GPT.from_pretrained, gpt.load_pretrained_tokenizer))
    corpus = gpt.Corpus.from_text(gpt.load_text("tinyshakespeare"), tokenizer)
    assert len(corpus.validation) == 111_540
    close(gpt.evaluate(model, corpus.validation).loss, record["held_out"]["loss"], 1e-5)


def test_the_bundled_name_leads_to_the_bundled_folder(gpt, saved, monkeypatch, tmp_path):
    copy = shutil.copytree(saved[1], tmp_path / "bundled")
    monkeypatch.setitem(gpt.pretrained.BUNDLED, "tinyshakespeare", copy)
    assert same(gpt.GPT.from_pretrained("tinyshakespeare"), saved[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_by_name(gpt, tmp_path, value):
    model = gpt.GPT(gpt.GPTConfig(context_size=4, vocab_size=5, n_layer=1, n_head=1, n_embd=4))
    with torch.no_grad():
        model.blocks[0].attention.qkv.weight[2, 3] = value
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"h\.0\.attn\.c_attn\.weight must be finite"):
        gpt.GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("n_layer", 10**9, r"n_layer must be at most 268,435,456, got 1,000,000,000"),
        ("n_layer", 10**8, r"n_layer = 100,000,000, but .*model\.safetensors hold \d+ tensors"),
        ("n_embd", 2**40, "n_embd must be at most"),
        ("vocab_size", 2**70, "vocab_size must be at most"),
        ("n_positions", 10**30, "n_positions must be at most"),
        ("vocab_size", 2**28, "wte.weight must have the shape"),
        ("n_embd", 12 * 2**24, "must have the shape"),
    ],
)
def test_a_size_that_no_file_can_hold_is_refused_at_once(gpt, saved, field, value, said):
    _, folder = saved
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {field: value}))
    started = time.perf_counter()
    with pytest.raises(ValueError, match=said):
        gpt.GPT.from_pretrained(folder)
    assert time.perf_counter() - started < 2


def test_brackets_without_end_are_a_damaged_file(gpt, saved):
    _, folder = saved
    (folder / "config.json").write_text("[" * 200_000)
    with pytest.raises(ValueError, match=r"config\.json is damaged: it is not JSON"):
        gpt.GPT.from_pretrained(folder)
