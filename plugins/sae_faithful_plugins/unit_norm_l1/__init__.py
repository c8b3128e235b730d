"""The SAE of Cunningham et al. (2023): decoder rows of unit length, ReLU, no decoder bias, L1; tied or not."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sae_faithful import hookimpl

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["l1_coefficient_of"]


@hookimpl
def register_architectures(register: Callable[[str, Callable[[], tuple[Any, Any]], str], None]) -> None:
    """Offer `unit_norm_l1`."""
    register(
        "unit_norm_l1",
        _unit_norm_l1,
        "unit-norm decoder rows, ReLU, L1, tied or not (Cunningham et al. 2023); saved as SAELens's standard",
    )


def l1_coefficient_of(alpha: float, d_in: int) -> float:
    """The option `l1_coefficient` that is the same training as an α of Cunningham et al. (2023, arXiv 2309.08600).

    Their code averages the squared error over the batch and the d_in dimensions, mean (x − x̂)² + α mean_batch ‖c‖₁,
    where SAELens and their equation 4 sum over dimensions. That sum is d_in times the mean, so with
    l1_coefficient = α · d_in the whole loss is d_in times theirs, and so are its gradients. Adam's steps do not
    depend on that factor (but for its ε); SAELens's clipping of gradients to length 1, which they did not have,
    does. Their 8.6e-4 at d_in 512 is .44. It holds at their scale of activations: an α says nothing about another
    model's.

    Args:
        alpha: as published, 0 or more.
        d_in: length of the activations that the SAE is trained on.

    Raises:
        ValueError: a negative α, or d_in below 1.
    """
    if alpha < 0 or d_in < 1:
        raise ValueError(f"alpha {alpha}, d_in {d_in}: alpha is 0 or more, d_in 1 or more")
    return alpha * d_in


def _unit_norm_l1() -> tuple[Any, Any]:
    from sae_faithful_plugins.unit_norm_l1.training import UnitNormL1TrainingSAE, UnitNormL1TrainingSAEConfig

    return UnitNormL1TrainingSAE, UnitNormL1TrainingSAEConfig
