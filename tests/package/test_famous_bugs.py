"""Bugs that were found, or still are, in admired repositories. Each is put in; a named check must turn red.

A bug is one or two lines of one function, written as what the package says and what it would say instead.
So this file also says, line by line, what is easy to get wrong in GPT-2.
"""

import ast
import inspect
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest

from tests.concepts import test_attention, test_block, test_inspection, test_model, test_tokens, test_training
from tests.package import test_files

# what goes wrong: (the function it is in, {right: wrong, ...}, the check that must notice)
BUGS = {
    "erf GELU for weights that were trained with tanh": (
        "block.GELU.forward",
        {"approximate=self.approximate": 'approximate="none"'},
        test_block.test_gpt2_uses_the_tanh_gelu,
    ),
    "unbiased variance in LayerNorm": (
        "block.layer_norm",
        {"(x - mean).square().mean(dim=-1, keepdim=True)": "x.var(dim=-1, keepdim=True)"},
        test_block.test_layer_norm_divides_by_the_biased_deviation,
    ),
    "eps outside the root in LayerNorm": (
        "block.layer_norm",
        {"torch.sqrt(variance + eps)": "(torch.sqrt(variance) + eps)"},
        test_block.test_layer_norm_divides_by_the_biased_deviation,
    ),
    "a finite mask, which large scores get around": (
        "attention._attention",
        {"-math.inf": "-1e4"},
        test_attention.test_a_masked_key_has_no_weight_however_large_its_score,
    ),
    "a mask applied after the softmax": (
        "attention._attention",
        {
            "scores = scores.masked_fill(~mask, -math.inf)": "pass",
            "weights = scores.softmax(dim=-1)": "weights = scores.softmax(dim=-1) * (1 if mask is None else mask)",
        },
        test_attention.test_the_mask_comes_before_the_softmax,
    ),
    "a mask that is off by one": (
        "attention.causal_mask",
        {"keys - queries": "keys - queries + 1"},
        test_attention.test_the_causal_mask_lets_a_query_look_at_itself_and_at_its_past,
    ),
    "a model that sees one token of the future": (
        "kernels.fused_causal_attention",
        {"is_causal=True": "attn_mask=torch.ones(queries, keys, dtype=torch.bool).tril(1)"},
        test_model.test_the_future_does_not_move_the_past,
    ),
    "view instead of split and transpose": (
        "attention.MultiHeadAttention._split",
        {
            'rearrange(x, "batch token (head d_head) -> batch head token d_head", head=self.num_heads)': (
                "x.reshape(x.shape[0], self.num_heads, x.shape[1], self.d_head)"
            )
        },
        test_attention.test_the_heads_are_cut_from_the_features_and_not_from_the_positions,
    ),
    "no scale": (
        "attention._attention",
        {"query / math.sqrt(query.shape[-1])": "query"},
        test_attention.test_the_weights_are_those_a_person_can_check,
    ),
    "a scale of 1/d": (
        "attention._attention",
        {"math.sqrt(query.shape[-1])": "query.shape[-1]"},
        test_attention.test_the_scale_keeps_the_variance_of_the_scores_at_one,
    ),
    "a head that is a copy of the table": (
        "model.GPT.head",
        {"self.token_embedding.weight": "self.token_embedding.weight.detach().clone()"},
        test_model.test_the_table_learns_from_both_of_its_uses,
    ),
    "tying that is lost when weights are moved or loaded": (
        "model.GPT.head",
        {"self.token_embedding.weight": '(self.__dict__.setdefault("copy", self.token_embedding.weight.clone()))'},
        test_model.test_the_head_stays_tied_whatever_happens_to_the_model,
    ),
    "accumulation that forgets to divide": (
        "training.batch_gradient",
        {"(count / sum(counts))": "1"},
        test_training.test_accumulation_trains_like_the_large_batch,
    ),
    "accumulation that weights unequal micro-batches equally": (
        "training.batch_gradient",
        {"(count / sum(counts))": "(1 / len(counts))"},
        test_training.test_unequal_micro_batches_count_by_their_targets,
    ),
    "accumulation that steps after the first micro-batch": (
        "training.Run.step",
        {"range(self.accumulation)": "range(1)"},
        test_training.test_accumulation_trains_like_the_large_batch,
    ),
    "a resume that loses the random numbers": (
        "checkpoint.Checkpoint.restore",
        {"set_rng_state(self.rng)": "pass"},
        test_training.test_six_steps_and_six_more_are_twelve_bit_for_bit,
    ),
    "a resume that loses its place in the data": (
        "training.Run._parts",
        {'parts["dataloader"] = self.batches': "pass"},
        test_training.test_six_steps_and_six_more_are_twelve_bit_for_bit,
    ),
    "a resume that loses the scaler": (
        "training.Run._parts",
        {'parts["scaler"] = self.scaler': "pass"},
        test_training.test_a_checkpoint_holds_the_scale_of_the_loss,
    ),
    "a resume that loses the step of the schedule": (
        "training.Run.load_state_dict",
        {'self.history.step = past["step"]': "pass"},
        test_training.test_six_steps_and_six_more_are_twelve_bit_for_bit,
    ),
    "a resume that overwrites the best model with a worse one": (
        "training.Run.load_state_dict",
        {'self.history.best = past["best"]': "pass"},
        test_training.test_the_best_model_is_kept_when_later_ones_are_worse,
    ),
    "a save that writes over the old file in place": (
        "files.atomic_file",
        {"with temporary_beside(path) as temporary:": "path.parent.mkdir(parents=True)\n    if temporary := path:"},
        test_files.test_an_atomic_file_is_the_old_or_the_new_never_a_part,
    ),
    "a cache with the mask of a prompt without a past": (
        "kernels.fused_causal_attention",
        {"if queries == keys:": "if True:"},
        test_model.test_cached_and_uncached_logits_are_the_same_for_any_cut_into_chunks,
    ),
    "a cache with positions that start again": (
        "model.GPT._hidden",
        {"start = cache[0].length if cache else 0": "start = 0"},
        test_model.test_cached_and_uncached_logits_are_the_same_for_any_cut_into_chunks,
    ),
    "weight decay on biases and gains": (
        "training.adamw",
        {'"weight_decay": 0.0': '"weight_decay": weight_decay'},
        test_training.test_only_matrices_and_embeddings_are_decayed,
    ),
    "clipping before unscaling": (
        "training.Run.step",
        {"self.scaler.unscale_(self.optimizer)": "pass"},
        test_training.test_the_loss_is_unscaled_before_it_is_clipped,
    ),
    "heat maps of a pass that never ran": (
        "attention.CausalSelfAttention.forward",
        {"heads, self.weights = _attention": "self.weights = (q @ k.mT).softmax(-1)\n        heads, _ = _attention"},
        test_inspection.test_a_case_computed_by_hand,
    ),
    "a padded vocabulary that can be drawn": (
        "model.GPT.head",
        {"self.token_embedding.weight": "F.pad(self.token_embedding.weight, (0, 0, 0, 7))"},
        test_model.test_logits_have_one_column_for_each_token_and_no_more,
    ),
    "a pre-tokenizer that knows only spaces": (
        "tokens.pretokenize",
        {"regex.finditer(pattern, text": r'regex.finditer(r"\s*\S+", text'},
        partial(test_tokens.test_the_pattern_splits_as_gpt2_does, text="Hello,", pieces=["Hello", ","]),
    ),
    "a pre-tokenizer that keeps runs of spaces whole": (
        "tokens.pretokenize",
        {"regex.finditer(pattern, text": r'regex.finditer(r" *\p{L}+|\s+", text'},
        partial(test_tokens.test_the_pattern_splits_as_gpt2_does, text="a  b", pieces=["a", " ", " b"]),
    ),
    "byte pairs merged from left to right, not in the order they were learned": (
        "tokens.apply_merges",
        {
            "min(pairwise(tokens), key=lambda neighbours: ranks.get(neighbours, math.inf))": (
                "next((pair for pair in pairwise(tokens) if pair in ranks), None)"
            )
        },
        test_tokens.test_merges_apply_in_the_order_in_which_they_were_learned,
    ),
}


def put_in(gpt, monkeypatch, place, changes):
    """Compile the function at `place` anew with the changes, and set it wherever the package holds the right one."""
    module_name, *path, name = place.split(".")
    module = owner = getattr(gpt, module_name)
    for part in path:
        owner = getattr(owner, part)
    right = vars(owner)[name]
    source = textwrap.dedent(inspect.getsource(right))
    for old, new in changes.items():
        assert source.count(old) == 1, f"{place} holds {old!r} {source.count(old)} times, not once"
        source = source.replace(old, new)
    namespace = {}
    exec(compile(source, f"<{place} with a bug>", "exec"), vars(module), namespace)
    monkeypatch.setattr(owner, name, namespace[name])
    for other in [other for key, other in sys.modules.items() if key == "gpt" or key.startswith("gpt.")]:
        for key, value in list(vars(other).items()):
            if value is right:
                monkeypatch.setattr(other, key, namespace[name])


@pytest.mark.parametrize("bug", BUGS)
def test_a_famous_bug_turns_its_check_red(bug, gpt, monkeypatch, tmp_path):
    place, changes, check = BUGS[bug]
    put_in(gpt, monkeypatch, place, changes)
    fixtures = {"gpt": gpt, "tmp_path": tmp_path, "monkeypatch": monkeypatch}
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        check(**{name: fixtures[name] for name in inspect.signature(check).parameters if name in fixtures})


ASSERTING = ("assert", "raises", "fail", "warns")


def test_every_test_asserts_something():
    """The last famous bug: a test that compares without `assert` and so cannot fail."""
    for path in sorted(Path(__file__).parents[1].rglob("test_*.py")):
        tree = ast.parse(path.read_text())
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}

        def asserts(name, functions=functions, seen=frozenset()):
            """Whether the function holds an assertion, or calls one of this file's functions that does."""
            if name in seen or name not in functions:
                return name == "close" or any(word in name for word in ASSERTING)
            calls = [node.func for node in ast.walk(functions[name]) if isinstance(node, ast.Call)]
            called = [call.attr if isinstance(call, ast.Attribute) else getattr(call, "id", "") for call in calls]
            has_own = any(isinstance(node, ast.Assert) for node in ast.walk(functions[name]))
            return has_own or any(asserts(other, functions, seen | {name}) for other in called)

        idle = [name for name in functions if name.startswith("test_") and not asserts(name)]
        assert not idle, f"{path.name}: these tests cannot fail: {idle}"
