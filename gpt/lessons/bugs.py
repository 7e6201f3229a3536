"""What is easy to get wrong in GPT-2? Bugs that were found, or still are, in admired programs, as data.

A bug is one or two lines of one function: what the package says, and what it would say instead. `planted` puts one in.
The tests plant each and see a named check turn red; `gpt.lessons.diagnosis` compares a learner's numbers with those of
every bug; docs/BUG_MUSEUM.md shows them in three rooms:

    loud      it crashes, sooner or later
    visible   a curve, a map or a text looks odd
    silent    only a test sees it
"""

from __future__ import annotations

import inspect
import linecache
import sys
import textwrap
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any, Literal
from unittest.mock import patch

Room = Literal["loud", "visible", "silent"]


@dataclass(frozen=True)
class Change:
    """Another text for a function.

    place     the function, from the package on: "gpt.block.GELU.forward"
    changes   {old: new, ...}; each old text occurs exactly once in the function
    """

    place: str
    changes: Mapping[str, str]


@dataclass(frozen=True, kw_only=True)
class Bug(Change):
    """One mistake, and what is known of it.

    name      what goes wrong, in a few words
    check     the test that must turn red, from tests/ on
    case      the test's arguments, if it has any
    room      loud, visible or silent: how one would notice
    guide     the section of DEEP_THEORY_GUIDE.md that says why it is wrong
    symptom   what one sees
    seen      where it happened: addresses of threads or commits
    """

    name: str
    check: str
    room: Room
    guide: str
    symptom: str
    case: Mapping[str, Any] = field(default_factory=dict)
    seen: tuple[str, ...] = ()


@contextmanager
def planted(*changes: Change) -> Iterator[None]:
    """Within, the package has these bugs, or other changes.

    Each function is compiled anew with the changes, and set wherever the package holds the right one.
    Raises ValueError if a text to change does not occur exactly once.
    """
    with ExitStack() as stack:
        for change in changes:
            for owner, name, value in _replacements(change):
                stack.enter_context(patch.object(owner, name, value))
        yield


def _replacements(change: Change) -> list[tuple[Any, str, Any]]:
    """(owner, name, the changed function): the place itself, and every module that imported the function."""
    path, name = change.place.rsplit(".", 1)
    owner = resolve_name(path)
    right = vars(owner)[name]
    source = textwrap.dedent(inspect.getsource(right))
    for old, new in change.changes.items():
        if source.count(old) != 1:
            raise ValueError(f"{change.place} holds {old!r} {source.count(old)} times, not once")
        source = source.replace(old, new)
    file = f"<{change.place} changed, {hash(source)}>"
    linecache.cache[file] = (len(source), None, source.splitlines(keepends=True), file)  # for the next change of it
    namespace: dict[str, Any] = {}
    exec(compile(source, file, "exec"), inspect.unwrap(right).__globals__, namespace)
    package = [module for key, module in sys.modules.items() if key == "gpt" or key.startswith("gpt.")]
    importers = [(module, key) for module in package for key, value in list(vars(module).items()) if value is right]
    return [(where, key, namespace[name]) for where, key in [(owner, name), *importers]]


BUGS = (
    Bug(
        name="erf GELU for weights that were trained with tanh",
        place="gpt.block.GELU.forward",
        changes={"approximate=self.approximate": 'approximate="none"'},
        check="concepts/test_block.py::test_gpt2_uses_the_tanh_gelu",
        room="silent",
        guide="4.4",
        symptom="Logits of the bundled model move by 0.02; its greedy text does not change.",
    ),
    Bug(
        name="unbiased variance in LayerNorm",
        place="gpt.block.layer_norm",
        changes={"(x - mean).square().mean(dim=-1, keepdim=True)": "x.var(dim=-1, keepdim=True)"},
        check="concepts/test_block.py::test_layer_norm_divides_by_the_biased_deviation",
        room="silent",
        guide="4.1",
        symptom="Every vector comes out a little shorter, by sqrt((n - 1) / n); the greedy text does not change.",
    ),
    Bug(
        name="eps outside the root in LayerNorm",
        place="gpt.block.layer_norm",
        changes={"torch.sqrt(variance + eps)": "(torch.sqrt(variance) + eps)"},
        check="concepts/test_block.py::test_layer_norm_divides_by_the_biased_deviation",
        room="silent",
        guide="4.1",
        symptom="Only vectors of small variance notice; the greedy text does not change.",
    ),
    Bug(
        name="a finite mask, which large scores get around",
        place="gpt.attention._attention",
        changes={"-math.inf": "-1e4"},
        check="concepts/test_attention.py::test_a_masked_key_has_no_weight_however_large_its_score",
        room="silent",
        guide="3.6",
        symptom="Nothing, until a masked score is as large as the mask.",
    ),
    Bug(
        name="a mask applied after the softmax",
        place="gpt.attention._attention",
        changes={
            "scores = scores.masked_fill(~mask, -math.inf)": "pass",
            "weights = scores.softmax(dim=-1)": "weights = scores.softmax(dim=-1) * (1 if mask is None else mask)",
        },
        check="concepts/test_attention.py::test_the_mask_comes_before_the_softmax",
        room="silent",
        guide="3.6",
        symptom="The rows no longer sum to 1: early positions hear almost nothing.",
    ),
    Bug(
        name="a mask that is off by one",
        place="gpt.attention.causal_mask",
        changes={"keys - queries": "keys - queries + 1"},
        check="concepts/test_attention.py::test_the_causal_mask_lets_a_query_look_at_itself_and_at_its_past",
        room="visible",
        guide="3.5",
        symptom="The training loss falls to almost nothing, and what is generated is poor.",
    ),
    Bug(
        name="a model that sees one token of the future",
        place="gpt.support.kernels.fused_causal_attention",
        changes={"is_causal=True": "attn_mask=torch.ones(queries, keys, dtype=torch.bool).tril(1)"},
        check="concepts/test_model.py::test_the_future_does_not_move_the_past",
        room="visible",
        guide="3.5",
        symptom="The training loss falls to almost nothing, and what is generated is poor.",
    ),
    Bug(
        name="view instead of split and transpose",
        place="gpt.attention.MultiHeadAttention._split",
        changes={
            'rearrange(x, "batch token (head d_head) -> batch head token d_head", head=self.num_heads)': (
                "x.reshape(x.shape[0], self.num_heads, x.shape[1], self.d_head)"
            )
        },
        check="concepts/test_attention.py::test_the_heads_are_cut_from_the_features_and_not_from_the_positions",
        room="visible",
        guide="3.7",
        symptom="The shapes are right, but a head holds pieces of several tokens, and the past sees the future.",
    ),
    Bug(
        name="no scale",
        place="gpt.attention._attention",
        changes={"query / math.sqrt(query.shape[-1])": "query"},
        check="concepts/test_attention.py::test_the_weights_are_those_a_person_can_check",
        room="silent",
        guide="3.4",
        symptom="The softmax is sharper than it should be; it learns, but more slowly.",
    ),
    Bug(
        name="a scale of 1/d",
        place="gpt.attention._attention",
        changes={"math.sqrt(query.shape[-1])": "query.shape[-1]"},
        check="concepts/test_attention.py::test_the_scale_keeps_the_variance_of_the_scores_at_one",
        room="silent",
        guide="3.4",
        symptom="The softmax is flatter than it should be; heads that look at one token form late.",
    ),
    Bug(
        name="a head that is a copy of the table",
        place="gpt.model.GPT.head",
        changes={"self.token_embedding.weight": "self.token_embedding.weight.detach().clone()"},
        check="concepts/test_model.py::test_the_table_learns_from_both_of_its_uses",
        room="silent",
        guide="5.6",
        symptom="Equal at the start; from the first step on, table and head learn different things.",
    ),
    Bug(
        name="tying that is lost when weights are moved or loaded",
        place="gpt.model.GPT.head",
        changes={
            "self.token_embedding.weight": '(self.__dict__.setdefault("copy", self.token_embedding.weight.clone()))'
        },
        check="concepts/test_model.py::test_the_head_stays_tied_whatever_happens_to_the_model",
        room="silent",
        guide="5.6",
        symptom="Nothing, until the weights are loaded or changed: the head stays what it was.",
    ),
    Bug(
        name="accumulation that forgets to divide",
        place="gpt.training.batch_gradient",
        changes={"(count / sum(counts))": "1"},
        check="concepts/test_training.py::test_accumulation_trains_like_the_large_batch",
        room="visible",
        guide="7.8",
        symptom="The loss is k times too large; clipping and Adam hide most of it.",
    ),
    Bug(
        name="accumulation that weights unequal micro-batches equally",
        place="gpt.training.batch_gradient",
        changes={"(count / sum(counts))": "(1 / len(counts))"},
        check="concepts/test_training.py::test_unequal_micro_batches_count_by_their_targets",
        room="silent",
        guide="7.8",
        symptom="The tokens of short micro-batches count for more.",
    ),
    Bug(
        name="accumulation that steps after the first micro-batch",
        place="gpt.training.Run.step",
        changes={"range(self.accumulation)": "range(1)"},
        check="concepts/test_training.py::test_accumulation_trains_like_the_large_batch",
        room="silent",
        guide="7.8",
        symptom="The batch is smaller than the number that was asked for.",
    ),
    Bug(
        name="a resume that loses the random numbers",
        place="gpt.storage.checkpoint.Checkpoint.restore",
        changes={"set_rng_state(self.rng)": "pass"},
        check="concepts/test_training.py::test_six_steps_and_six_more_are_twelve_bit_for_bit",
        room="silent",
        guide="7.6",
        symptom="The run goes on, but is another one than it would have been.",
    ),
    Bug(
        name="a resume that loses its place in the data",
        place="gpt.training.Run._parts",
        changes={'parts["dataloader"] = self.batches': "pass"},
        check="concepts/test_training.py::test_six_steps_and_six_more_are_twelve_bit_for_bit",
        room="silent",
        guide="7.6",
        symptom="The first part of the text is read twice, the last never.",
    ),
    Bug(
        name="a resume that loses the scaler",
        place="gpt.training.Run._parts",
        changes={'parts["scaler"] = self.scaler': "pass"},
        check="concepts/test_training.py::test_a_checkpoint_holds_the_scale_of_the_loss",
        room="silent",
        guide="7.10",
        symptom="Some updates are left out while the scale is found again.",
    ),
    Bug(
        name="a resume that loses the step of the schedule",
        place="gpt.training.Run.load_state_dict",
        changes={'self.history.step = past["step"]': "pass"},
        check="concepts/test_training.py::test_six_steps_and_six_more_are_twelve_bit_for_bit",
        room="visible",
        guide="7.6",
        symptom="The rate jumps back up after the resume.",
    ),
    Bug(
        name="a resume that overwrites the best model with a worse one",
        place="gpt.training.Run.load_state_dict",
        changes={'self.history.best = past["best"]': "pass"},
        check="concepts/test_training.py::test_the_best_model_is_kept_when_later_ones_are_worse",
        room="silent",
        guide="7.6",
        symptom="The folder keeps the first model after the resume, not the best.",
    ),
    Bug(
        name="a save that writes over the old file in place",
        place="gpt.support.files.atomic_file",
        changes={
            "with temporary_beside(path) as temporary:": "path.parent.mkdir(parents=True)\n    if temporary := path:"
        },
        check="package/test_files.py::test_an_atomic_file_is_the_old_or_the_new_never_a_part",
        room="loud",
        guide="7.6",
        symptom="Nothing, until a run is killed while it saves: then neither the old nor the new file is left.",
    ),
    Bug(
        name="a cache with the mask of a prompt without a past",
        place="gpt.support.kernels.fused_causal_attention",
        changes={"if queries == keys:": "if True:"},
        check="concepts/test_model.py::test_cached_and_uncached_logits_are_the_same_for_any_cut_into_chunks",
        room="visible",
        guide="8.6",
        symptom="A prompt that is read in pieces gives other logits than one that is read at once.",
    ),
    Bug(
        name="a cache with positions that start again",
        place="gpt.model.GPT._hidden",
        changes={"start = cache[0].length if cache else 0": "start = 0"},
        check="concepts/test_model.py::test_cached_and_uncached_logits_are_the_same_for_any_cut_into_chunks",
        room="visible",
        guide="8.6",
        symptom="Every new token believes that it stands at the beginning.",
    ),
    Bug(
        name="weight decay on biases and gains",
        place="gpt.training.adamw",
        changes={'"weight_decay": 0.0': '"weight_decay": weight_decay'},
        check="concepts/test_training.py::test_only_matrices_and_embeddings_are_decayed",
        room="silent",
        guide="7.5",
        symptom="Gains shrink towards 0, and the loss ends a little higher.",
    ),
    Bug(
        name="clipping before unscaling",
        place="gpt.training.Run.step",
        changes={"self.scaler.unscale_(self.optimizer)": "pass"},
        check="concepts/test_training.py::test_the_loss_is_unscaled_before_it_is_clipped",
        room="silent",
        guide="7.10",
        symptom="Every gradient is cut to a length that the scale decides, not the bound.",
    ),
    Bug(
        name="heat maps of a pass that never ran",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={
            "heads, self.weights = _attention": "self.weights = (q @ k.mT).softmax(-1)\n        heads, _ = _attention"
        },
        check="concepts/test_inspection.py::test_a_case_computed_by_hand",
        room="silent",
        guide="9.8",
        symptom="The picture is beautiful, and not of what the model computed.",
    ),
    Bug(
        name="a padded vocabulary that can be drawn",
        place="gpt.model.GPT.head",
        changes={"self.token_embedding.weight": "F.pad(self.token_embedding.weight, (0, 0, 0, 7))"},
        check="concepts/test_model.py::test_logits_have_one_column_for_each_token_and_no_more",
        room="loud",
        guide="5.4",
        symptom="Once in a long while an id is drawn that no tokenizer can read.",
    ),
    Bug(
        name="a pre-tokenizer that knows only spaces",
        place="gpt.tokens.pretokenize",
        changes={"regex.finditer(pattern, text": 'regex.finditer(r"\\s*\\S+", text'},
        check="concepts/test_tokens.py::test_the_pattern_splits_as_gpt2_does",
        case={"text": "Hello,", "pieces": ["Hello", ","]},
        room="silent",
        guide="1.2",
        symptom="The same text becomes other ids than the released model learned with.",
    ),
    Bug(
        name="a pre-tokenizer that keeps runs of spaces whole",
        place="gpt.tokens.pretokenize",
        changes={"regex.finditer(pattern, text": 'regex.finditer(r" *\\p{L}+|\\s+", text'},
        check="concepts/test_tokens.py::test_the_pattern_splits_as_gpt2_does",
        case={"text": "a  b", "pieces": ["a", " ", " b"]},
        room="silent",
        guide="1.2",
        symptom="Indented text becomes other ids than the released model learned with.",
    ),
    Bug(
        name="byte pairs merged from left to right, not in the order they were learned",
        place="gpt.tokens.apply_merges",
        changes={
            "min(pairwise(tokens), key=lambda neighbours: ranks.get(neighbours, math.inf))": (
                "next((pair for pair in pairwise(tokens) if pair in ranks), None)"
            )
        },
        check="concepts/test_tokens.py::test_merges_apply_in_the_order_in_which_they_were_learned",
        room="silent",
        guide="1.2",
        symptom="Words are cut differently; the text comes back all the same.",
    ),
    # What learners write.
    Bug(
        name="a softmax over the queries",
        place="gpt.attention._attention",
        changes={"scores.softmax(dim=-1)": "scores.softmax(dim=-2)"},
        check="concepts/test_attention.py::test_the_weights_of_each_query_sum_to_one",
        room="silent",
        guide="3.1",
        symptom="The columns of a map sum to 1, its rows do not; with a mask, later keys hear only themselves.",
    ),
    Bug(
        name="a mask turned around",
        place="gpt.attention._attention",
        changes={"masked_fill(~mask, -math.inf)": "masked_fill(mask, -math.inf)"},
        check="concepts/test_attention.py::test_a_masked_key_has_no_weight_however_large_its_score",
        room="loud",
        guide="3.5",
        symptom="Each query sees only its future; the last sees nothing, and softmax of nothing is nan.",
    ),
    Bug(
        name="a scale by the number of keys",
        place="gpt.attention._attention",
        changes={"math.sqrt(query.shape[-1])": "math.sqrt(key.shape[-2])"},
        check="concepts/test_attention.py::test_the_scale_keeps_the_variance_of_the_scores_at_one",
        room="silent",
        guide="3.4",
        symptom="The longer the text, the flatter the attention.",
    ),
    Bug(
        name="queries and keys exchanged in the scores",
        place="gpt.attention._attention",
        changes={'-> ... query key")': '-> ... key query")'},
        check="concepts/test_attention.py::test_the_weights_are_those_a_person_can_check",
        room="silent",
        guide="3.1",
        symptom="Each token looks where it is looked at from.",
    ),
    Bug(
        name="a mask that hides the token itself",
        place="gpt.attention.causal_mask",
        changes={"keys - queries": "keys - queries - 1"},
        check="concepts/test_attention.py::test_the_causal_mask_lets_a_query_look_at_itself_and_at_its_past",
        room="loud",
        guide="3.5",
        symptom="The first token has nothing to look at: nan from the first step on.",
    ),
    Bug(
        name="a mask of the future in place of the past",
        place="gpt.attention.causal_mask",
        changes={".tril(keys - queries)": ".triu(keys - queries)"},
        check="concepts/test_attention.py::test_the_causal_mask_lets_a_query_look_at_itself_and_at_its_past",
        room="visible",
        guide="3.5",
        symptom="The loss falls to almost nothing: the answer is in sight.",
    ),
    Bug(
        name="a mask that does not know the past of a cache",
        place="gpt.attention.causal_mask",
        changes={".tril(keys - queries)": ".tril()"},
        check="concepts/test_attention.py::test_the_causal_mask_lets_a_query_look_at_itself_and_at_its_past",
        room="silent",
        guide="3.5",
        symptom="Right for a whole text; with a cache a new token sees only the first ones.",
    ),
    Bug(
        name="heads cut from positions and not from features",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={
            "q, k, v = rearrange(self.qkv(x), axes, three=3, head=self.num_heads)": "q, k, v = (part.reshape(len(x), self.num_heads, -1, self.d_head) for part in self.qkv(x).chunk(3, dim=-1))"
        },
        check="concepts/test_attention.py::test_the_future_does_not_move_the_past",
        room="visible",
        guide="3.7",
        symptom="The shapes are right, but a head holds pieces of several tokens, and the past sees the future.",
    ),
    Bug(
        name="q, k and v interleaved head by head",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={"(three head d_head)": "(head three d_head)"},
        check="concepts/test_attention.py::test_the_layer_and_all_its_gradients_are_those_of_numpy",
        room="silent",
        guide="3.7",
        symptom="A fresh model learns as well; released weights make no sense.",
    ),
    Bug(
        name="features of the heads interleaved",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={"(three head d_head)": "(three d_head head)"},
        check="concepts/test_attention.py::test_the_layer_and_all_its_gradients_are_those_of_numpy",
        room="silent",
        guide="3.7",
        symptom="A fresh model learns as well; released weights make no sense.",
    ),
    Bug(
        name="the order k, q, v in the fused layer",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={"q, k, v = rearrange": "k, q, v = rearrange"},
        check="concepts/test_attention.py::test_the_layer_and_all_its_gradients_are_those_of_numpy",
        room="silent",
        guide="3.7",
        symptom="A fresh model learns as well; released weights make no sense.",
    ),
    Bug(
        name="no projection behind the heads",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={"return self.projection(rearrange(": "return (rearrange("},
        check="concepts/test_attention.py::test_the_layer_and_all_its_gradients_are_those_of_numpy",
        room="silent",
        guide="3.8",
        symptom="Heads cannot be mixed; a matrix learns nothing.",
    ),
    Bug(
        name="heads laid side by side without swapping axes back",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={'rearrange(heads, "batch head token d_head -> batch token (head d_head)")': "heads.reshape(x.shape)"},
        check="concepts/test_attention.py::test_the_future_does_not_move_the_past",
        room="visible",
        guide="3.7",
        symptom="A token gets what other tokens have read.",
    ),
    Bug(
        name="a layer without a mask",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={
            "causal_mask(queries, keys, x.device)": "None",
            "kernels.fused_causal_attention(q, k, v, dropout)": "torch.nn.functional.scaled_dot_product_attention(q, k, v)",
        },
        check="concepts/test_attention.py::test_the_future_does_not_move_the_past",
        room="visible",
        guide="3.5",
        symptom="The loss falls to almost nothing, and what is generated is poor.",
    ),
    Bug(
        name="scores scaled by the width of the model and not of a head",
        place="gpt.attention.CausalSelfAttention.forward",
        changes={"if self.record_weights:": "q = q / math.sqrt(self.num_heads)\n    if self.record_weights:"},
        check="concepts/test_attention.py::test_the_layer_and_all_its_gradients_are_those_of_numpy",
        room="silent",
        guide="3.4",
        symptom="Attention is too flat, by the root of the number of heads.",
    ),
    Bug(
        name="a LayerNorm that does not centre",
        place="gpt.block.layer_norm",
        changes={"(x - mean) / torch.sqrt": "x / torch.sqrt"},
        check="concepts/test_block.py::test_the_equation_the_layer_pytorch_and_numpy_agree_on_layer_norm",
        case={"n": 4},
        room="silent",
        guide="4.1",
        symptom="Half way to RMSNorm: a shift of the stream gets through.",
    ),
    Bug(
        name="a LayerNorm that forgets its gain",
        place="gpt.block.layer_norm",
        changes={"torch.sqrt(variance + eps) * weight": "torch.sqrt(variance + eps)"},
        check="concepts/test_block.py::test_the_equation_the_layer_pytorch_and_numpy_agree_on_layer_norm",
        case={"n": 4},
        room="silent",
        guide="4.1",
        symptom="A fresh model does not notice: its gains are 1.",
    ),
    Bug(
        name="a LayerNorm that forgets its shift",
        place="gpt.block.layer_norm",
        changes={"normalized if bias is None else normalized + bias": "normalized"},
        check="concepts/test_block.py::test_the_equation_the_layer_pytorch_and_numpy_agree_on_layer_norm",
        case={"n": 4},
        room="silent",
        guide="4.1",
        symptom="A fresh model does not notice: its shifts are 0.",
    ),
    Bug(
        name="a LayerNorm with the variance in place of the deviation",
        place="gpt.block.layer_norm",
        changes={"torch.sqrt(variance + eps)": "(variance + eps)"},
        check="concepts/test_block.py::test_the_equation_the_layer_pytorch_and_numpy_agree_on_layer_norm",
        case={"n": 4},
        room="silent",
        guide="4.1",
        symptom="Long vectors become short, short ones long.",
    ),
    Bug(
        name="a GELU that is a ReLU",
        place="gpt.block.gelu",
        changes={"0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))": "x.relu()"},
        check="concepts/test_block.py::test_the_three_gelus_agree_in_value_and_gradient",
        case={"form": "tanh"},
        room="silent",
        guide="4.4",
        symptom="It learns; released weights speak worse.",
    ),
    Bug(
        name="a GELU by the sigmoid",
        place="gpt.block.gelu",
        changes={
            "0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))": "x * torch.sigmoid(1.702 * x)"
        },
        check="concepts/test_block.py::test_the_three_gelus_agree_in_value_and_gradient",
        case={"form": "tanh"},
        room="silent",
        guide="4.4",
        symptom="A third form, which other models use: off by up to 0.02.",
    ),
    Bug(
        name="a GELU whose cube is a square",
        place="gpt.block.gelu",
        changes={"x**3": "x**2"},
        check="concepts/test_block.py::test_the_three_gelus_agree_in_value_and_gradient",
        case={"form": "tanh"},
        room="silent",
        guide="4.4",
        symptom="Right near 0, wrong for negative numbers.",
    ),
    Bug(
        name="a GELU with its root upside down",
        place="gpt.block.gelu",
        changes={"2 / math.pi": "math.pi / 2"},
        check="concepts/test_block.py::test_the_three_gelus_agree_in_value_and_gradient",
        case={"form": "tanh"},
        room="silent",
        guide="4.4",
        symptom="Steeper than it should be.",
    ),
    Bug(
        name="a feed-forward network without its bend",
        place="gpt.block.FeedForward.forward",
        changes={"self.activation(self.expand(x))": "self.expand(x)"},
        check="concepts/test_block.py::test_the_feed_forward_network_and_all_its_gradients_are_those_of_numpy",
        room="silent",
        guide="4.5",
        symptom="Two matrices in a row are one matrix: it learns, but little.",
    ),
    Bug(
        name="a bend at the end of the feed-forward network",
        place="gpt.block.FeedForward.forward",
        changes={"self.project(self.activation(self.expand(x)))": "self.activation(self.project(self.expand(x)))"},
        check="concepts/test_block.py::test_the_feed_forward_network_and_all_its_gradients_are_those_of_numpy",
        room="silent",
        guide="4.5",
        symptom="What is written to the stream is almost never negative.",
    ),
    Bug(
        name="a norm behind the addition",
        place="gpt.block.Block.forward",
        changes={
            "x = x + self.dropout(self.attention(self.attention_norm(x), cache))": "x = self.attention_norm(x + self.dropout(self.attention(x, cache)))",
            "x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))": "self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))",
        },
        check="concepts/test_block.py::test_the_residual_path_hands_on_values_and_gradients_unchanged",
        room="visible",
        guide="4.8",
        symptom="A deep model learns only with a long warm-up.",
    ),
    Bug(
        name="no residual path around the attention",
        place="gpt.block.Block.forward",
        changes={"x = x + self.dropout(": "x = self.dropout("},
        check="concepts/test_block.py::test_the_residual_path_hands_on_values_and_gradients_unchanged",
        room="visible",
        guide="4.6",
        symptom="The token forgets itself; a deep model hardly learns.",
    ),
    Bug(
        name="no residual path around the feed-forward network",
        place="gpt.block.Block.forward",
        changes={"return x + self.dropout(": "return self.dropout("},
        check="concepts/test_block.py::test_the_residual_path_hands_on_values_and_gradients_unchanged",
        room="visible",
        guide="4.6",
        symptom="The token forgets itself; a deep model hardly learns.",
    ),
    Bug(
        name="no norm in front of the attention",
        place="gpt.block.Block.forward",
        changes={"self.attention(self.attention_norm(x), cache)": "self.attention(x, cache)"},
        check="concepts/test_block.py::test_a_block_normalizes_what_each_part_reads_and_adds_what_it_writes",
        room="visible",
        guide="4.8",
        symptom="Scores grow with the stream: the deeper, the sharper.",
    ),
    Bug(
        name="no norm in front of the feed-forward network",
        place="gpt.block.Block.forward",
        changes={"self.feed_forward(self.feed_forward_norm(x))": "self.feed_forward(x)"},
        check="concepts/test_block.py::test_a_block_normalizes_what_each_part_reads_and_adds_what_it_writes",
        room="visible",
        guide="4.8",
        symptom="The deeper the block, the larger what it reads.",
    ),
    Bug(
        name="one norm for both parts of a block",
        place="gpt.block.Block.forward",
        changes={"self.feed_forward_norm(x)": "self.attention_norm(x)"},
        check="concepts/test_block.py::test_a_block_normalizes_what_each_part_reads_and_adds_what_it_writes",
        room="silent",
        guide="4.6",
        symptom="A fresh model does not notice: both norms are the same.",
    ),
    Bug(
        name="a residual path that carries the normalised stream",
        place="gpt.block.Block.forward",
        changes={
            "x = x + self.dropout(self.attention(self.attention_norm(x), cache))": "x = self.attention_norm(x)\n    x = x + self.dropout(self.attention(x, cache))"
        },
        check="concepts/test_block.py::test_the_residual_path_hands_on_values_and_gradients_unchanged",
        room="visible",
        guide="4.6",
        symptom="The stream begins anew in every block.",
    ),
    Bug(
        name="both parts of a block read the same stream",
        place="gpt.block.Block.forward",
        changes={
            "x = x + self.dropout(self.attention(self.attention_norm(x), cache))": "y = x + self.dropout(self.attention(self.attention_norm(x), cache))",
            "return x + self.dropout(": "return y + self.dropout(",
        },
        check="concepts/test_block.py::test_a_block_and_all_its_gradients_are_those_of_numpy",
        case={"bias": True},
        room="silent",
        guide="4.6",
        symptom="Another model, which some later ones use; released weights lose.",
    ),
    Bug(
        name="no norm before the head",
        place="gpt.model.GPT._hidden",
        changes={"return self.final_norm(x)": "return x"},
        check="concepts/test_model.py::test_the_model_is_its_parts_in_order",
        room="silent",
        guide="5.1",
        symptom="The logits of a deep model are too large, and each text's in its own measure.",
    ),
    Bug(
        name="no positions",
        place="gpt.model.GPT._hidden",
        changes={
            "self.position_embedding(self.token_embedding(tokens, sparse), start)": "self.token_embedding(tokens, sparse)"
        },
        check="concepts/test_model.py::test_the_model_is_its_parts_in_order",
        room="visible",
        guide="2.3",
        symptom="It learns which letters occur, and hardly their order.",
    ),
    Bug(
        name="positions that begin at 1",
        place="gpt.model.GPT._hidden",
        changes={"sparse), start)": "sparse), start + 1)"},
        check="concepts/test_model.py::test_the_model_is_its_parts_in_order",
        room="silent",
        guide="2.5",
        symptom="Released weights: each token stands one place too far. A full context crashes.",
    ),
    Bug(
        name="embeddings scaled by the root of the width",
        place="gpt.model.GPT._hidden",
        changes={
            "self.token_embedding(tokens, sparse)": "self.token_embedding(tokens, sparse) * math.sqrt(self.config.n_embd)"
        },
        check="concepts/test_model.py::test_the_model_is_its_parts_in_order",
        room="silent",
        guide="5.11",
        symptom="As the first Transformer did, and GPT-2 does not.",
    ),
    Bug(
        name="blocks in the opposite order",
        place="gpt.model.GPT._hidden",
        changes={"zip(self.blocks, pasts": "zip(reversed(self.blocks), pasts"},
        check="concepts/test_model.py::test_the_model_is_its_parts_in_order",
        room="silent",
        guide="5.1",
        symptom="A fresh model does not notice; released weights make no sense.",
    ),
    Bug(
        name="a loss that is a sum",
        place="gpt.model.GPT.forward",
        changes={"ignore_index=IGNORED)": 'ignore_index=IGNORED, reduction="sum")'},
        check="concepts/test_model.py::test_before_training_the_loss_is_that_of_a_uniform_guess",
        room="visible",
        guide="1.5",
        symptom="The loss begins at hundreds; clipping and Adam hide what follows.",
    ),
    Bug(
        name="targets shifted a second time",
        place="gpt.model.GPT.forward",
        changes={
            "F.cross_entropy(logits.flatten(0, 1), targets.flatten().long(),": "F.cross_entropy(logits[:, :-1].flatten(0, 1), targets[:, 1:].flatten().long(),"
        },
        check="concepts/test_model.py::test_the_loss_is_the_mean_surprise_at_the_targets",
        room="silent",
        guide="1.5",
        symptom="It learns to predict the token after the next.",
    ),
    Bug(
        name="targets that are the inputs",
        place="gpt.model.GPT.forward",
        changes={
            "flat = self.token_embedding.weight, targets.flatten()": "flat = self.token_embedding.weight, tokens.flatten()",
            "logits.flatten(0, 1), targets.flatten()": "logits.flatten(0, 1), tokens.flatten()",
        },
        check="concepts/test_model.py::test_the_loss_is_the_mean_surprise_at_the_targets",
        room="visible",
        guide="1.5",
        symptom="The loss falls to 0, and nothing has been learned.",
    ),
    Bug(
        name="targets that are never ignored",
        place="gpt.model.GPT.forward",
        changes={"ignore_index=IGNORED)": "ignore_index=-1)"},
        check="concepts/test_model.py::test_ignored_targets_count_neither_in_the_mean_nor_in_the_gradient",
        room="loud",
        guide="1.5",
        symptom="The first target of -100 is out of range.",
    ),
    Bug(
        name="a warm-up that begins at 0",
        place="gpt.training.cosine_schedule",
        changes={"peak * (step + 1) / (warmup + 1)": "peak * step / warmup"},
        check="concepts/test_training.py::test_the_schedule_climbs_in_a_line_and_falls_in_a_half_cosine",
        room="silent",
        guide="7.6",
        symptom="The first batch is read for nothing.",
    ),
    Bug(
        name="a decay in a line",
        place="gpt.training.cosine_schedule",
        changes={"0.5 * (1 + math.cos(math.pi * progress))": "(1 - progress)"},
        check="concepts/test_training.py::test_the_schedule_climbs_in_a_line_and_falls_in_a_half_cosine",
        room="silent",
        guide="7.6",
        symptom="Another schedule, and hardly a worse one.",
    ),
    Bug(
        name="a cosine that forgets the warm-up",
        place="gpt.training.cosine_schedule",
        changes={"(step - warmup) / max(1, total - warmup)": "step / total"},
        check="concepts/test_training.py::test_the_schedule_climbs_in_a_line_and_falls_in_a_half_cosine",
        room="visible",
        guide="7.6",
        symptom="The rate jumps where the warm-up ends.",
    ),
    Bug(
        name="a rate that forgets its floor",
        place="gpt.training.cosine_schedule",
        changes={"floor + (peak - floor) * 0.5": "peak * 0.5"},
        check="concepts/test_training.py::test_the_schedule_climbs_in_a_line_and_falls_in_a_half_cosine",
        room="silent",
        guide="7.6",
        symptom="The last updates move nothing.",
    ),
    Bug(
        name="a cosine that rises again",
        place="gpt.training.cosine_schedule",
        changes={"min(1.0, (step - warmup) / max(1, total - warmup))": "(step - warmup) / max(1, total - warmup)"},
        check="concepts/test_training.py::test_the_schedule_climbs_in_a_line_and_falls_in_a_half_cosine",
        room="visible",
        guide="7.6",
        symptom="A run that goes on beyond its planned end climbs again.",
    ),
    Bug(
        name="no weight decay at all",
        place="gpt.training.adamw",
        changes={'"weight_decay": weight_decay': '"weight_decay": 0.0'},
        check="concepts/test_training.py::test_only_matrices_and_embeddings_are_decayed",
        room="silent",
        guide="7.5",
        symptom="The option is read and does nothing.",
    ),
    Bug(
        name="top-p without the token that crosses the line",
        place="gpt.generation.Sampling._distribution",
        changes={"higher < self.top_p": "p.cumsum(dim=-1) <= self.top_p"},
        check="concepts/test_generation.py::test_top_p_counts_after_temperature_and_top_k",
        room="silent",
        guide="8.4",
        symptom="A single sure token leaves an empty set.",
    ),
    Bug(
        name="top-k that keeps one more",
        place="gpt.generation.Sampling._distribution",
        changes={"min(self.top_k, p.shape[-1])": "min(self.top_k + 1, p.shape[-1])"},
        check="concepts/test_generation.py::test_top_k_keeps_the_k_likeliest_and_renormalises",
        room="silent",
        guide="8.3",
        symptom="The text is a little wilder than was asked for.",
    ),
    Bug(
        name="top-k that keeps one less",
        place="gpt.generation.Sampling._distribution",
        changes={"min(self.top_k, p.shape[-1])": "min(self.top_k - 1, p.shape[-1])"},
        check="concepts/test_generation.py::test_top_k_keeps_the_k_likeliest_and_renormalises",
        room="silent",
        guide="8.3",
        symptom="The text is a little tamer; top_k=1 leaves nothing.",
    ),
    Bug(
        name="a temperature that multiplies",
        place="gpt.generation.Sampling._distribution",
        changes={"(logits - largest) / max(": "(logits - largest) * max("},
        check="concepts/test_generation.py::test_temperature_half_squares_the_odds",
        room="visible",
        guide="8.1",
        symptom="Hot is cold and cold is hot.",
    ),
)
