"""Generation: greedy, with each side's own cache. All read the same random weights from one folder."""

from __future__ import annotations

import inspect
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from benchmarks.peers import Missing, Side, count, installed, named, our_model, random_tokens
from benchmarks.sizes import Places, Sizes


def model_folder(sizes: Sizes, places: Places) -> Path:
    """The released-layout folder of this size."""
    return Path(places.work) / sizes.model


def write_model(sizes: Sizes, places: Places) -> None:
    """Random weights into `model_folder`, unless they are there."""
    from gpt.storage.pretrained import save_pretrained

    folder = model_folder(sizes, places)
    if not folder.exists():
        torch.manual_seed(0)
        save_pretrained(our_model(sizes), folder)


# --- this package


def our_loaded(sizes: Sizes, places: Places) -> Any:
    """load_pretrained, with weights kept in fewer bits where the row asks for it."""
    from gpt.storage.pretrained import load_pretrained

    folder = model_folder(sizes, places)
    if sizes.weights == "float32":
        return load_pretrained(folder)
    if "weights" not in inspect.signature(load_pretrained).parameters:
        raise Missing(f"load_pretrained has no weights={sizes.weights!r} in this version")
    narrow: Any = load_pretrained  # whose signature this version may not know
    return narrow(folder, weights=sizes.weights)


def ours(sizes: Sizes, places: Places) -> Side:
    """`generate` of this package."""
    model = our_loaded(sizes, places).to(sizes.device)
    prompt = random_tokens(sizes, sizes.batch, sizes.prompt)

    def run() -> None:
        tokens = model.generate(prompt, sizes.new, temperature=0)
        assert tokens.shape == (sizes.batch, sizes.prompt + sizes.new)

    return Side(run, named("torch"), count(model) if sizes.weights == "float32" else None)


def ours_plain(sizes: Sizes, places: Places) -> Side:
    """The same with PyTorch's own F.linear in place of ours."""
    from gpt.support import kernels

    kernels.linear = F.linear
    return ours(sizes, places)


def our_loading(sizes: Sizes, places: Places) -> Side:
    """From the folder to the first token."""
    prompt = random_tokens(sizes, 1, sizes.prompt)

    def run() -> None:
        our_loaded(sizes, places).generate(prompt, 1, temperature=0)

    return Side(run, named("torch"))


# --- transformers


def hf_loaded(sizes: Sizes, places: Places) -> Any:
    """from_pretrained of the same folder."""
    transformers = installed("transformers")
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    dtype = {"float32": torch.float32, "bfloat16": torch.bfloat16}[sizes.weights]
    model = transformers.GPT2LMHeadModel.from_pretrained(model_folder(sizes, places), dtype=dtype)
    return model.to(sizes.device).eval()


def hf_run(sizes: Sizes, model: Any, **options: Any) -> None:
    """generate, with exactly as many tokens as asked for."""
    prompt = random_tokens(sizes, sizes.batch, sizes.prompt)
    tokens = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0,
        max_new_tokens=sizes.new, min_new_tokens=sizes.new, **options,
    )  # fmt: skip
    assert tokens.shape == (sizes.batch, sizes.prompt + sizes.new)


def hf(sizes: Sizes, places: Places) -> Side:
    """transformers as it is."""
    model = hf_loaded(sizes, places)
    return Side(partial(hf_run, sizes, model), named("transformers"), count(model))


def hf_compiled(sizes: Sizes, places: Places) -> Side:
    """transformers with a static cache and its forward pass compiled, which on a CPU must be asked for."""
    model = hf_loaded(sizes, places)
    options = installed("transformers").CompileConfig(mode="default")
    options._compile_all_devices = True  # noqa: SLF001 (it has no other switch)
    run = partial(hf_run, sizes, model, cache_implementation="static", compile_config=options)
    return Side(run, named("transformers"), count(model))


def hf_loading(sizes: Sizes, places: Places) -> Side:
    """From the folder to the first token."""
    one = Sizes(model=sizes.model, prompt=sizes.prompt, new=1)
    return Side(lambda: hf_run(one, hf_loaded(one, places)), named("transformers"))


# --- ctranslate2


def ctranslate2(sizes: Sizes, places: Places) -> Side:
    """ctranslate2's Generator on its own conversion of the folder."""
    engine = installed("ctranslate2")
    names = [f"t{i}" for i in range(sizes.config.vocab_size)]
    tokenizer = SimpleNamespace(
        get_vocab=lambda: {name: i for i, name in enumerate(names)}, bos_token="t0", eos_token="t0", unk_token="t0"
    )

    class Converter(engine.converters.TransformersConverter):
        def load_tokenizer(self, *_: Any, **__: Any) -> Any:
            return tokenizer  # ids are all that is needed here

    folder = Path(places.work) / f"ctranslate2-{sizes.model}-{sizes.weights}"
    if not folder.exists():
        Converter(str(model_folder(sizes, places))).convert(str(folder), quantization=sizes.weights)
    try:
        generator = engine.Generator(
            str(folder), device="cpu", compute_type=sizes.weights, intra_threads=places.threads
        )
    except ValueError as error:  # this processor, or its build, lacks the format
        raise Missing(f"ctranslate2: {error}") from error
    prompts = [[names[i] for i in row] for row in random_tokens(sizes, sizes.batch, sizes.prompt).tolist()]

    def run() -> None:
        results = generator.generate_batch(
            prompts, max_length=sizes.new, min_length=sizes.new, sampling_topk=1, include_prompt_in_result=False
        )
        assert all(len(result.sequences_ids[0]) == sizes.new for result in results)

    return Side(run, named("ctranslate2"))


# --- llama.cpp


def llama_cpp(sizes: Sizes, places: Places) -> Side:
    """llama.cpp by its Python binding, on a GGUF file of the same weights."""
    llama, gguf = installed("llama_cpp"), installed("gguf")
    path = Path(places.work) / f"{sizes.model}-{sizes.weights}.gguf"
    if not path.exists():
        write_gguf(gguf, path, sizes, model_folder(sizes, places))
    model = llama.Llama(str(path), n_ctx=512, n_threads=places.threads, n_threads_batch=places.threads, verbose=False)
    prompt = random_tokens(sizes, 1, sizes.prompt)[0].tolist()

    def run() -> None:
        model.reset()
        model.eval(prompt)
        for _ in range(sizes.new - 1):
            model.eval([model.sample(temp=0.0)])
        model.sample(temp=0.0)

    return Side(run, named("llama_cpp", "llama-cpp-python"))


def write_gguf(gguf: Any, path: Path, sizes: Sizes, folder: Path) -> None:
    """The folder's weights as llama.cpp reads them: matrices in the row's format, vectors in float32."""
    from safetensors.numpy import load_file

    c, kinds = sizes.config, gguf.GGMLQuantizationType
    kind = {"float32": kinds.F32, "bfloat16": kinds.BF16, "int8": kinds.Q8_0}[sizes.weights]
    writer = gguf.GGUFWriter(path, "gpt2")
    writer.add_block_count(c.n_layer)
    writer.add_context_length(c.context_size)
    writer.add_embedding_length(c.n_embd)
    writer.add_feed_forward_length(c.d_ff)
    writer.add_head_count(c.n_head)
    writer.add_layer_norm_eps(1e-5)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(c.vocab_size)
    for name, numbers in load_file(folder / "model.safetensors").items():
        target = gguf_name(name.removeprefix("transformer."))
        matrix = numbers.ndim == 2 and target != "position_embd.weight"
        # GPT-2 stores its matrices as [d_in, d_out], the tables as [rows, d_model].
        upright = np.ascontiguousarray(numbers.T if matrix and target.startswith("blk.") else numbers)
        used = kind if matrix else kinds.F32
        writer.add_tensor(target, gguf.quants.quantize(upright, used), raw_dtype=used)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def gguf_name(released: str) -> str:
    """For example h.3.attn.c_attn.weight -> blk.3.attn_qkv.weight."""
    parts = {
        "wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm", "ln_1": "attn_norm", "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    head, _, end = released.rpartition(".")
    if not head.startswith("h."):
        return f"{parts[head]}.{end}"
    _, layer, part = head.split(".", 2)
    return f"blk.{layer}.{parts[part]}.{end}"
