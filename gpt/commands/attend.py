"""`python -m gpt attend`: draw where each token of a text looks."""

from __future__ import annotations

from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from gpt.commands.output import say
from gpt.commands.parsing import Options, add_model
from gpt.commands.tokenizers import given

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from gpt.model import GPT
    from gpt.tokens import Tokenizer

HELP = "draw the attention of a text: heat maps (PNG, SVG) and a page to point at"
EXAMPLES = (
    '--text "To be, or not to be"',
    '--text "To be, or not to be" --layer 1 --head 5 --out figures/mine',
)


def options(parser: ArgumentParser) -> None:
    parser.add_argument("--text", required=True, help='the text, or "-" to read it from standard input')
    add_model(parser)
    parser.add_argument("--layer", type=int, help="heat maps of one layer (default: all)")
    parser.add_argument("--head", type=int, help="one head, large (default: all heads of a layer in one figure)")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("figures/attention"),
        help="folder for the figures and attention.html, which any browser opens",
    )


def run(options: Options) -> None:
    from gpt.storage.pretrained import load_pretrained, load_pretrained_tokenizer

    model, tokenizer = load_pretrained(options.model), load_pretrained_tokenizer(options.model)
    config = model.config
    for name, value, limit in (("layer", options.layer, config.n_layer), ("head", options.head, config.n_head)):
        if value is not None and not 0 <= value < limit:
            raise ValueError(f"--{name} must be in 0..{limit - 1} for this model, got {value}")
    layers = range(config.n_layer) if options.layer is None else [options.layer]
    text, kinds = given(options.text), ("png", "svg")
    for path in draw_attention(model, tokenizer, text, options.out, list(layers), options.head, kinds):
        say(f"wrote {path}")


def draw_attention(
    model: GPT,
    tokenizer: Tokenizer,
    text: str,
    out: Path,
    layers: list[int],
    head: int | None,
    kinds: tuple[str, ...] = ("png",),
) -> list[Path]:
    """Heat maps and the page of one real forward pass over the text; returns the files written, the page last."""
    import torch

    from gpt import figures
    from gpt.figures.pages.attention import attention_page
    from gpt.inspection import trace
    from gpt.support.files import atomic_file

    ids = tokenizer.encode(text)
    if not ids:
        raise ValueError("text must not be empty")
    attention = trace(model, torch.tensor([ids])).attention[:, 0]
    labels = tokenizer.pieces(ids)
    files: list[Path] = []

    def write(figure: Figure, name: str) -> None:
        files.extend(figures.save(figure, out / f"{name}.{kind}") for kind in kinds)

    if head is None:
        write(figures.plot_attention_grid(attention), "all_heads")
        for layer in layers:
            title = f"Layer {layer}: where each head looks"
            write(figures.plot_layer(attention[layer], labels, title), f"layer_{layer}")
    else:
        for layer in layers:
            title = f"Layer {layer}, head {head}: where each token looks"
            write(figures.plot_head(attention[layer, head], labels, title), f"layer_{layer}_head_{head}")
    try:
        page = attention_page(attention, labels)
    except ValueError as error:  # a long text in a large model: its heat maps are still worth having
        say(f"no attention.html: {error}")
        return files
    with atomic_file(out / "attention.html") as path:
        path.write_text(page, encoding="utf-8")
    return [*files, out / "attention.html"]
