"""What a language model's last step makes of a direction: the output matrix with the final norm's gain in it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch
    from jaxtyping import Float

FINAL_NORMS = ("norm", "ln_f", "final_layer_norm", "final_layernorm", "norm_f")
"""What Hugging Face models call the norm before their output matrix."""
INNER_MODELS = ("language_model", "text_model", "decoder")
"""Where some of them keep it, if not in the base model itself."""


def of_hooked(model: Any) -> Float[torch.Tensor, "vocab d_model"]:
    """Of a HookedTransformer."""
    return _folded(model.W_U.T, model.ln_final)


def of_hugging_face(model: Any) -> Float[torch.Tensor, "vocab d_model"] | None:
    """Of a Hugging Face causal LM; None where its output matrix or its final norm is not found."""
    import torch

    head = model.get_output_embeddings()
    weight = getattr(head, "weight", None)
    base = model.base_model
    inner = [base, *(found for name in INNER_MODELS if (found := getattr(base, name, None)) is not None)]
    norms = [getattr(each, name, None) for each in inner for name in FINAL_NORMS]
    norm = next((one for one in norms if isinstance(one, torch.nn.Module)), None)
    if weight is None or norm is None:
        return None
    width = getattr(norm, "weight", weight[0]).shape[-1]
    # Something between norm and matrix (a projection, say) would be left out.
    return None if width != weight.shape[1] else _folded(weight, norm)


def _folded(
    weight: Float[torch.Tensor, "vocab d_model"], norm: torch.nn.Module
) -> Float[torch.Tensor, "vocab d_model"]:
    """`weight` times the Jacobian of `norm`, but for the scale that depends on its input and for what it projects
    out along that input.

    The norm is asked, not read: some keep their gain as 1 + weight. Two opposite vectors cancel the bias, and
    without a mean and of length √d they pass a layer norm and an RMS norm alike, their gain apart.
    """
    import torch

    with torch.no_grad():
        d = weight.shape[1]
        probe = torch.ones(d, device=weight.device, dtype=weight.dtype)
        alternating = probe.clone()
        alternating[1::2] = -1
        alternating -= alternating.mean()
        alternating *= (d / (alternating**2).sum()) ** 0.5
        through, constant = (
            (norm(sign[None, None]) - norm(-sign[None, None]))[0, 0].float() for sign in (alternating, probe)
        )
        gain = through / (2 * alternating.float())
        folded = weight.float() * gain
        # A layer norm takes the mean off, so that nothing of a constant vector passes; an RMS norm does not.
        centres = bool(constant.abs().max() < 1e-3 * through.abs().max())
        return folded - folded.mean(dim=1, keepdim=True) if centres else folded
