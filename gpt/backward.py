"""What is the gradient of GPT-2's loss with respect to every number inside it?

The whole of GPT-2, forward and backward, in NumPy float64 and without autograd. Each operation is a pair
of functions, `<op>_forward` and `<op>_backward`, and each gradient is the result of a derivation on paper
(DEEP_THEORY_GUIDE.md, Part 6). The module imports nothing of the package, so it can judge the rest of it.

One convention holds for every pair. L is the loss, and "the gradient of z" is dL/dz, of the same shape as z.

    output, cache = op_forward(inputs)          cache: the inputs and the intermediate values, by name
    gradients = op_backward(d_output, cache)    gradients: dL/d(value), under the value's name in the cache

An operation made of others nests their caches, and its gradients nest in the same way. So one dotted name
finds a value and its gradient, and for a parameter it is the parameter's own name:

    logits, loss, cache = gpt_forward(params, tokens, n_head, targets)
    values = named(cache)                                  values["blocks.0.attention.heads.weights"]
    gradients = gpt_backward(cache, intermediates=True)    gradients["blocks.0.attention.heads.weights"]

The residual connection needs no pair of its own. For y = x + f(x) the gradient is d_x = d_y + (d_y through
f): whatever reaches the output reaches the input unchanged, and f adds its part. Where a value is used twice,
its gradient is the sum over its uses; `x` in a layer norm's gradients is the part that came through the norm.

Shapes: B batch, T queries, S keys, V vocabulary, H heads; `...` stands for any leading axes.
"""

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int

Array = np.ndarray
GELU_SLOPE = np.sqrt(2 / np.pi)
GELU_CUBIC = 0.044715
IGNORED = -100  # a target with this value is not counted in the loss


def embedding_forward(
    ids: Int[Array, "*batch"], weight: Float[Array, "rows d_model"]
) -> tuple[Float[Array, "*batch d_model"], dict]:
    """Row lookup, y_t = weight[id_t]. It is the product of a one-hot row with `weight`.

    ids [...] integers, weight [rows, d_model] -> [..., d_model].
    Raises TypeError for ids that are not integers, ValueError for an id outside the table.
    """
    _check_ids("ids", ids, len(weight))
    return weight[ids], {"ids": ids, "weight": weight}


def embedding_backward(d_output: Array, cache: dict) -> dict:
    """Scatter-add: d_weight[v] = sum of d_y_t over all t with id_t = v. Rows that were not used get zero."""
    d_weight = np.zeros_like(cache["weight"])
    np.add.at(d_weight, cache["ids"], d_output)  # unlike d_weight[ids] += d_output, this counts repeated ids
    return {"weight": d_weight}


def linear_forward(
    x: Float[Array, "*batch d_in"], weight: Float[Array, "d_out d_in"], bias: Float[Array, " d_out"] | None = None
) -> tuple[Float[Array, "*batch d_out"], dict]:
    """y = x weight^T + bias.

    x [..., d_in], weight [d_out, d_in], bias [d_out] or None -> [..., d_out].
    """
    y = x @ weight.T if bias is None else x @ weight.T + bias
    return y, {"x": x, "weight": weight, "bias": bias}


def linear_backward(d_output: Array, cache: dict) -> dict:
    """d_x = d_y weight;  d_weight = sum_t d_y_t x_t^T;  d_bias = sum_t d_y_t.  (t: all leading axes.)"""
    x, weight = cache["x"], cache["weight"]
    d_rows = d_output.reshape(-1, weight.shape[0])
    gradients = {"x": d_output @ weight, "weight": d_rows.T @ x.reshape(-1, weight.shape[1])}
    if cache["bias"] is not None:
        gradients["bias"] = d_rows.sum(axis=0)
    return gradients


def layer_norm_forward(
    x: Float[Array, "*batch d"], weight: Float[Array, " d"], bias: Float[Array, " d"] | None = None, eps: float = 1e-5
) -> tuple[Float[Array, "*batch d"], dict]:
    """n = (x - mean) / sqrt(variance + eps);  y = weight * n + bias.

    Mean and variance are taken over the last axis; the variance divides by d, not d - 1 (biased).
    x [..., d], weight [d], bias [d] or None -> [..., d]. Ba et al. 2016; GPT-2 uses eps = 1e-5.
    """
    mean = x.mean(axis=-1, keepdims=True)
    variance = ((x - mean) ** 2).mean(axis=-1, keepdims=True)
    inverse_std = 1 / np.sqrt(variance + eps)
    normalized = (x - mean) * inverse_std
    y = weight * normalized if bias is None else weight * normalized + bias
    statistics = {"mean": mean, "inverse_std": inverse_std, "normalized": normalized}
    return y, {"x": x, "weight": weight, "bias": bias} | statistics


def layer_norm_backward(d_output: Array, cache: dict) -> dict:
    """d_n = weight * d_y;  d_x = inverse_std * (d_n - avg(d_n) - n * avg(d_n * n)), avg over the last axis.

    The two averages are how x acts through the mean and through the variance. They take out of d_n its part
    along (1, ..., 1) and (but for eps) its part along n: what ignores shift and scale has no gradient there.
    d_weight = sum_t d_y_t * n_t;  d_bias = sum_t d_y_t.
    """
    normalized = cache["normalized"]
    leading = tuple(range(d_output.ndim - 1))
    d_normalized = d_output * cache["weight"]
    along_ones = d_normalized.mean(axis=-1, keepdims=True)
    along_normalized = normalized * (d_normalized * normalized).mean(axis=-1, keepdims=True)
    gradients = {
        "x": cache["inverse_std"] * (d_normalized - along_ones - along_normalized),
        "normalized": d_normalized,
        "weight": (d_output * normalized).sum(axis=leading),
    }
    if cache["bias"] is not None:
        gradients["bias"] = d_output.sum(axis=leading)
    return gradients


def gelu_forward(x: Array) -> tuple[Array, dict]:
    """y = x/2 (1 + tanh u), u = sqrt(2/pi) (x + 0.044715 x^3): the tanh form, which GPT-2's weights expect.

    x [...] -> [...]. Hendrycks & Gimpel 2016, section 2.
    """
    tanh = np.tanh(GELU_SLOPE * (x + GELU_CUBIC * x**3))
    return 0.5 * x * (1 + tanh), {"x": x, "tanh": tanh}


def gelu_backward(d_output: Array, cache: dict) -> dict:
    """d_x = d_y [ (1 + tanh u)/2 + x/2 (1 - tanh^2 u) u' ],  u' = sqrt(2/pi) (1 + 3 * 0.044715 x^2)."""
    x, tanh = cache["x"], cache["tanh"]
    d_inside = GELU_SLOPE * (1 + 3 * GELU_CUBIC * x**2)
    return {"x": d_output * (0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * d_inside)}


def softmax_forward(x: Array) -> tuple[Array, dict]:
    """p_i = exp(x_i) / sum_j exp(x_j), over the last axis. An x_i of -inf gives p_i = 0.

    x [..., n] -> [..., n]; each row needs a finite entry. Adding a constant to a row changes nothing, so the
    largest entry is subtracted first and no exponential overflows.
    """
    exponentials = np.exp(x - x.max(axis=-1, keepdims=True))
    probabilities = exponentials / exponentials.sum(axis=-1, keepdims=True)
    return probabilities, {"x": x, "probabilities": probabilities}


def softmax_backward(d_output: Array, cache: dict) -> dict:
    """dp_i/dx_j = p_i (1[i=j] - p_j), so d_x = p * (d_p - sum_i d_p_i p_i). Each row of d_x sums to zero."""
    p = cache["probabilities"]
    return {"x": p * (d_output - (d_output * p).sum(axis=-1, keepdims=True))}


def cross_entropy_forward(logits: Float[Array, "*batch V"], targets: Int[Array, "*batch"]) -> tuple[float, dict]:
    """L = mean over the counted positions of log(sum_v exp z_v) - z_target, in nats.

    logits [..., V], targets [...] integers in 0..V-1, or -100 for a position that does not count.
    Raises TypeError for targets that are not integers, ValueError for a wrong shape or a target out of range,
    and where no position counts: a mean over nothing does not exist (PyTorch gives nan).
    """
    rows = logits.shape[:-1]
    if targets.shape != rows:
        raise ValueError(f"targets must have the shape {rows} of the logits' rows, got {targets.shape}")
    counted = targets != IGNORED
    if not counted.any():
        raise ValueError(f"targets must hold at least one position that is not {IGNORED} (ignored)")
    _check_ids("targets", targets[counted], logits.shape[-1])
    highest = logits.max(axis=-1, keepdims=True)
    log_sum = highest + np.log(np.exp(logits - highest).sum(axis=-1, keepdims=True))
    losses = log_sum[counted, 0] - logits[counted, targets[counted]]  # one number for each counted position
    probabilities = np.exp(logits - log_sum)
    cache = {"logits": logits, "targets": targets, "counted": counted, "probabilities": probabilities}
    return float(losses.mean()), cache


def cross_entropy_backward(d_loss: float, cache: dict) -> dict:
    """d_z = d_L (p - onehot(target)) / (number of counted positions); zero where the target is ignored."""
    counted = cache["counted"]
    one_hot = np.arange(cache["logits"].shape[-1]) == cache["targets"][..., None]
    return {"logits": d_loss * (cache["probabilities"] - one_hot) * counted[..., None] / counted.sum()}


def causal_mask(length: int) -> Bool[Array, "length length"]:
    """Boolean [query, key], True where key <= query: a position may look at itself and at its past."""
    return np.tril(np.ones((length, length), dtype=bool))


def attention_forward(
    q: Float[Array, "*batch T d_k"],
    k: Float[Array, "*batch S d_k"],
    v: Float[Array, "*batch S d_v"],
    mask: Bool[Array, "..."] | None = None,
) -> tuple[Float[Array, "*batch T d_v"], dict]:
    """scores = q k^T / sqrt(d_k);  weights = softmax(scores, -inf where mask is False);  output = weights v.

    q [..., T, d_k], k [..., S, d_k], v [..., S, d_v], same leading axes (batch, head) -> [..., T, d_v].
    mask: boolean, broadcast to [..., T, S], True where the query may look; None lets it look everywhere.
    `scores` in the cache are those before the mask. Vaswani et al. 2017, section 3.2.1.
    Raises ValueError for shapes that do not fit and for a query that may look at no key, TypeError for a mask
    that is not boolean.
    """
    if q.shape[:-2] != k.shape[:-2] or q.shape[-1] != k.shape[-1] or k.shape[:-1] != v.shape[:-1]:
        got = f"{q.shape}, {k.shape}, {v.shape}"
        raise ValueError(f"q [..., T, d_k], k [..., S, d_k], v [..., S, d_v] must fit together, got {got}")
    scores = q @ np.swapaxes(k, -1, -2) / np.sqrt(q.shape[-1])
    mask = np.ones(scores.shape[-2:], dtype=bool) if mask is None else mask
    if mask.dtype != bool:
        raise TypeError(f"mask must be boolean (True where the query may look), got {mask.dtype}")
    if not mask.any(axis=-1).all():
        raise ValueError("mask must let every query look at one key at least, got a row without True")
    weights, softmax = softmax_forward(np.where(mask, scores, -np.inf))
    output = weights @ v
    cache = {"q": q, "k": k, "v": v, "mask": mask, "scores": scores, "softmax": softmax, "weights": weights}
    return output, cache | {"output": output}


def attention_backward(d_output: Array, cache: dict) -> dict:
    """With A the weights and S the scores:

    d_V = A^T d_Y;  d_A = d_Y V^T;  d_S = A * (d_A - rowsum(d_A * A));  d_Q = d_S K / sqrt(d_k);
    d_K = d_S^T Q / sqrt(d_k).  Where the mask is False, A = 0 and so d_S = 0: nothing is learned from there.
    """
    q, k, v, weights = cache["q"], cache["k"], cache["v"], cache["weights"]
    d_weights = d_output @ np.swapaxes(v, -1, -2)
    d_scores = softmax_backward(d_weights, cache["softmax"])["x"]
    d_q = d_scores @ k / np.sqrt(q.shape[-1])
    d_k = np.swapaxes(d_scores, -1, -2) @ q / np.sqrt(q.shape[-1])
    d_v = np.swapaxes(weights, -1, -2) @ d_output
    return {"q": d_q, "k": d_k, "v": d_v, "scores": d_scores, "weights": d_weights, "output": d_output}


def causal_self_attention_forward(
    x: Float[Array, "B T d_model"], params: dict, n_head: int
) -> tuple[Float[Array, "B T d_model"], dict]:
    """One linear map makes q, k and v; H heads attend to the past side by side; a second one joins them.

    x [B, T, d_model]; params: qkv.weight [3 d_model, d_model], projection.weight [d_model, d_model], their
    biases or none -> [B, T, d_model]. The cache of `attention_forward` is under "heads".
    Raises ValueError when n_head does not divide d_model. Vaswani et al. 2017, section 3.2.2.
    """
    if n_head < 1 or x.shape[-1] % n_head:
        raise ValueError(f"n_head must divide d_model = {x.shape[-1]}, got {n_head}")
    qkv, qkv_cache = linear_forward(x, **_under(params, "qkv"))
    q, k, v = (_split_heads(part, n_head) for part in np.split(qkv, 3, axis=-1))
    output, heads = attention_forward(q, k, v, causal_mask(x.shape[1]))
    output, projection = linear_forward(_merge_heads(output), **_under(params, "projection"))
    return output, {"x": x, "qkv": qkv_cache, "heads": heads, "projection": projection}


def causal_self_attention_backward(d_output: Array, cache: dict) -> dict:
    """Splitting and merging heads only move numbers, so each one's gradient is the other."""
    projection = linear_backward(d_output, cache["projection"])
    heads = attention_backward(_split_heads(projection["x"], cache["heads"]["q"].shape[1]), cache["heads"])
    d_qkv = np.concatenate([_merge_heads(heads[name]) for name in ("q", "k", "v")], axis=-1)
    qkv = linear_backward(d_qkv, cache["qkv"])
    return {"x": qkv["x"], "qkv": qkv, "heads": heads, "projection": projection}


def feed_forward_forward(
    x: Float[Array, "*batch d_model"], params: dict
) -> tuple[Float[Array, "*batch d_model"], dict]:
    """y = gelu(x W_1^T + b_1) W_2^T + b_2, at each position by itself.

    x [..., d_model]; params: expand.weight [d_ff, d_model], project.weight [d_model, d_ff], their biases or
    none -> [..., d_model].
    """
    hidden, expand = linear_forward(x, **_under(params, "expand"))
    activation, gelu = gelu_forward(hidden)
    output, project = linear_forward(activation, **_under(params, "project"))
    return output, {"x": x, "expand": expand, "gelu": gelu, "project": project}


def feed_forward_backward(d_output: Array, cache: dict) -> dict:
    """The chain rule from right to left: through `project`, the GELU and `expand`."""
    project = linear_backward(d_output, cache["project"])
    gelu = gelu_backward(project["x"], cache["gelu"])
    expand = linear_backward(gelu["x"], cache["expand"])
    return {"x": expand["x"], "expand": expand, "gelu": gelu, "project": project}


def block_forward(
    x: Float[Array, "B T d_model"], params: dict, n_head: int
) -> tuple[Float[Array, "B T d_model"], dict]:
    """residual = x + attention(norm(x));  output = residual + feed_forward(norm(residual)).  (Pre-norm.)

    x [B, T, d_model]; params: one block's, named without "blocks.{i}." -> [B, T, d_model].
    Radford et al. 2019, section 2.3.
    """
    normalized, attention_norm = layer_norm_forward(x, **_under(params, "attention_norm"))
    from_attention, attention = causal_self_attention_forward(normalized, _under(params, "attention"), n_head)
    residual = x + from_attention
    normalized, feed_forward_norm = layer_norm_forward(residual, **_under(params, "feed_forward_norm"))
    from_feed_forward, feed_forward = feed_forward_forward(normalized, _under(params, "feed_forward"))
    output = residual + from_feed_forward
    cache = {"x": x, "attention_norm": attention_norm, "attention": attention, "residual": residual}
    cache |= {"feed_forward_norm": feed_forward_norm, "feed_forward": feed_forward, "output": output}
    return output, cache


def block_backward(d_output: Array, cache: dict) -> dict:
    """d_residual = d_output + (its part through norm and feed-forward);  d_x likewise through attention."""
    feed_forward = feed_forward_backward(d_output, cache["feed_forward"])
    feed_forward_norm = layer_norm_backward(feed_forward["x"], cache["feed_forward_norm"])
    d_residual = d_output + feed_forward_norm["x"]
    attention = causal_self_attention_backward(d_residual, cache["attention"])
    attention_norm = layer_norm_backward(attention["x"], cache["attention_norm"])
    d_x = d_residual + attention_norm["x"]
    gradients = {"x": d_x, "attention_norm": attention_norm, "attention": attention, "residual": d_residual}
    gradients |= {"feed_forward_norm": feed_forward_norm, "feed_forward": feed_forward, "output": d_output}
    return gradients


def gpt_forward(
    params: dict, tokens: Array, n_head: int, targets: Array | None = None
) -> tuple[Float[Array, "B T V"], float | None, dict]:
    """GPT-2: token plus position embedding, N blocks, a last norm, logits = hidden token_embedding^T.

    params: the state dict of `gpt.GPT` as arrays. N is read from the names; an absent bias is not used.
    tokens [B, T], targets [B, T] or None -> logits [B, T, V], loss in nats (None without targets), cache.
    The token table is used twice (tied); the cache names the uses: "embed" (lookup) and "head" (logits).
    Raises TypeError for tokens that are not integers; ValueError for tokens outside 0..V-1 or not [B, T], for
    none or T > T_max, for an n_head that does not divide d_model. For targets: `cross_entropy_forward`.
    """
    params = {name: np.asarray(value, dtype=np.float64) for name, value in params.items()}
    tokens = np.asarray(tokens)
    table, positions = params["token_embedding.weight"], params["position_embedding.weight"]
    if tokens.ndim != 2 or tokens.size == 0 or tokens.shape[1] > len(positions):
        allowed = f"[batch, T] with at least one token and T at most T_max = {len(positions)}"
        raise ValueError(f"tokens must be {allowed}, got shape {tokens.shape}")
    _check_ids("tokens", tokens, len(table))

    embedded, embed = embedding_forward(tokens, table)
    position, position_embedding = embedding_forward(np.arange(tokens.shape[1]), positions)
    x = embedded + position  # the same positions for each sequence of the batch
    blocks = []
    for i in range(len({name.split(".")[1] for name in params if name.startswith("blocks.")})):
        x, block = block_forward(x, _under(params, f"blocks.{i}"), n_head)
        blocks.append(block)
    hidden, final_norm = layer_norm_forward(x, **_under(params, "final_norm"))
    logits, head = linear_forward(hidden, table)
    cache = {"parameter_names": tuple(params), "token_embedding": {"weight": table}, "embed": embed}
    cache |= {"position_embedding": position_embedding, "blocks": blocks}
    cache |= {"final_norm": final_norm, "head": head}
    if targets is None:
        return logits, None, cache
    loss, cache["cross_entropy"] = cross_entropy_forward(logits, np.asarray(targets))
    return logits, loss, cache


def gpt_backward(cache: dict, intermediates: bool = False) -> dict[str, Array]:
    """The gradient of the loss for every parameter, under the parameter's name and in the order of `params`.

    The tied table gets the sum of two paths: d_table = (scatter-add of the lookup) + d_logits^T hidden.
    With intermediates=True every other gradient comes too, under its dotted name in `named(cache)`, such as
    "cross_entropy.logits", "blocks.0.output", "blocks.0.attention.heads.scores", and the table's two paths
    "embed.weight" and "head.weight". Raises ValueError for a cache made without targets.
    """
    if "cross_entropy" not in cache:
        raise ValueError("cache holds no loss: call gpt_forward with targets")
    cross_entropy = cross_entropy_backward(1.0, cache["cross_entropy"])
    head = linear_backward(cross_entropy["logits"], cache["head"])
    final_norm = layer_norm_backward(head["x"], cache["final_norm"])
    d_x, blocks = final_norm["x"], []
    for block_cache in reversed(cache["blocks"]):
        block = block_backward(d_x, block_cache)
        d_x = block["x"]
        blocks.insert(0, block)
    embed = embedding_backward(d_x, cache["embed"])
    position_embedding = embedding_backward(d_x.sum(axis=0), cache["position_embedding"])
    token_embedding = {"weight": embed["weight"] + head["weight"]}
    tree = {"token_embedding": token_embedding, "embed": embed, "position_embedding": position_embedding}
    tree |= {"blocks": blocks, "final_norm": final_norm, "head": head, "cross_entropy": cross_entropy}
    gradients = named(tree)
    return gradients if intermediates else {name: gradients[name] for name in cache["parameter_names"]}


def adamw_step(
    params: dict[str, Array],
    gradients: dict[str, Array],
    state: dict | None = None,
    lr: float = 1e-3,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    weight_decay: float = 0.01,
) -> tuple[dict[str, Array], dict]:
    """One step of AdamW as PyTorch takes it. Returns new parameters and the new state; the given ones stay.

    theta <- theta (1 - lr weight_decay), only where theta has two axes or more (no biases, no norm gains)
    m <- beta1 m + (1 - beta1) g;  v <- beta2 v + (1 - beta2) g^2
    theta <- theta - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps)
    state: None before the first step, then what the last step returned. Loshchilov & Hutter 2019.
    """
    step = 1 if state is None else state["step"] + 1
    new_params, new_state = {}, {"step": step, "first_moment": {}, "second_moment": {}}
    for name, theta in params.items():
        g = gradients[name]
        m = beta1 * (0 if state is None else state["first_moment"][name]) + (1 - beta1) * g
        v = beta2 * (0 if state is None else state["second_moment"][name]) + (1 - beta2) * g**2
        decayed = theta * (1 - lr * weight_decay) if theta.ndim >= 2 else theta
        new_params[name] = decayed - lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)
        new_state["first_moment"][name], new_state["second_moment"][name] = m, v
    return new_params, new_state


def finite_difference(f: Callable[[Array], float], x: Array, h: float = 1e-5) -> Array:
    """df/dx_i = (f(x + h e_i) - f(x - h e_i)) / 2h, nearly, for each entry i: a gradient without derivation.

    f takes an array like x and returns a number; the result has the shape of x. The error is about
    h^2 |f'''|/6 from the formula and 1e-16 |f|/h from rounding; h = 1e-5 keeps both small in float64.
    """
    gradient = np.zeros(x.shape)
    for i in np.ndindex(x.shape):
        step = np.zeros(x.shape)
        step[i] = h
        gradient[i] = (f(x + step) - f(x - step)) / (2 * h)
    return gradient


def named(tree: dict | list, prefix: str = "") -> dict[str, Array]:
    """Every array of a nested cache under its dotted name, such as "blocks.0.attention.heads.weights"."""
    arrays = {}
    for key, value in enumerate(tree) if isinstance(tree, list) else tree.items():
        if isinstance(value, dict | list):
            arrays |= named(value, f"{prefix}{key}.")
        elif isinstance(value, np.ndarray):
            arrays[f"{prefix}{key}"] = value
    return arrays


def _under(params: dict, prefix: str) -> dict:
    """The parameters whose names begin with `prefix` and a dot, without that beginning."""
    start = f"{prefix}."
    return {name.removeprefix(start): value for name, value in params.items() if name.startswith(start)}


def _split_heads(x: Array, n_head: int) -> Array:
    """[batch, position, head * d_head] -> [batch, head, position, d_head]: cut first, then transpose."""
    batch, position, d_model = x.shape
    return x.reshape(batch, position, n_head, d_model // n_head).transpose(0, 2, 1, 3)


def _merge_heads(x: Array) -> Array:
    """[batch, head, position, d_head] -> [batch, position, head * d_head]: the way back."""
    batch, head, position, d_head = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, position, head * d_head)


def _check_ids(name: str, ids: Array, size: int) -> None:
    """Integers in 0..size-1, or an error. (NumPy would take -1 for the last row.)"""
    if not np.issubdtype(ids.dtype, np.integer):
        raise TypeError(f"{name} must be integers, got {ids.dtype}")
    if ids.size and not (ids.min() >= 0 and ids.max() < size):
        raise ValueError(f"{name} must be in 0..{size - 1}, got {ids.min()}..{ids.max()}")
