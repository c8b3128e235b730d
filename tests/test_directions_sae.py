"""Directions as SAELens SAEs: checked against products worked out here, and through SAELens's own loader."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch

from sae_faithful import Directions, RunError
from sae_faithful.directions_sae import SIGNED_FILE, as_sae, check, load, n_latents, save

if TYPE_CHECKING:
    from pathlib import Path

N, D = 5, 4
METADATA = {"model_name": "tiny", "hook_name": "model.layers.0", "seqpos_slice": [None]}


def drawn(**changes: Any) -> Directions:
    """Directions that write along something else than they read along, with a mean."""
    generator = torch.Generator().manual_seed(0)
    read, write = (torch.randn(N, D, generator=generator) for _ in range(2))
    mean = torch.randn(D, generator=generator) * 3
    return replace(Directions(read=read, write=write, mean=mean), **changes)


@pytest.fixture
def activations() -> torch.Tensor:
    return torch.randn(3, 7, D, generator=torch.Generator().manual_seed(1)) * 2


def expected_latents(directions: Directions, activations: torch.Tensor) -> torch.Tensor:
    """In float64, by the definition in `Directions`."""
    codes = (activations.double() - directions.mean.double()) @ directions.read.double().T
    if directions.sign == "signed":
        return codes
    if directions.sign == "split":
        codes = torch.cat([codes, -codes], dim=-1)
    if directions.k is not None:
        least = codes.sort(dim=-1, descending=True).values[..., directions.k - 1 : directions.k]
        codes = codes.where(codes >= least, 0)
    return codes.clamp(min=0)


def expected_output(directions: Directions, latents: torch.Tensor) -> torch.Tensor:
    write = directions.write.double()
    if directions.sign == "split":
        write = torch.cat([write, -write])
    return latents @ write + directions.mean.double()


CASES = [
    {"sign": "split"},
    {"sign": "relu"},
    {"sign": "signed"},
    {"sign": "split", "k": 3},
    {"sign": "relu", "k": 2},
    {"sign": "relu", "k": N},
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_latents_and_reconstruction_are_the_definition_s_before_and_after_the_disk(
    case: dict[str, Any], activations: torch.Tensor, tmp_path: Path
) -> None:
    directions = drawn(**case)
    check(directions, "one", D)
    sae = as_sae(directions, METADATA)
    latents = expected_latents(directions, activations)
    assert latents.shape[-1] == n_latents(directions) == sae.cfg.d_sae
    output = expected_output(directions, latents)
    save(sae, tmp_path)
    signed = sae.cfg.to_dict() if case["sign"] == "signed" else None
    for one in (sae, load(tmp_path, signed, "cpu")):
        with torch.no_grad():
            torch.testing.assert_close(one.encode(activations).double(), latents, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(one(activations).double(), output, atol=1e-4, rtol=1e-5)
        assert one.cfg.metadata.hook_name == "model.layers.0"


@pytest.mark.parametrize("case", [case for case in CASES if case["sign"] != "signed"], ids=str)
def test_the_files_load_in_plain_saelens_with_the_same_codes(
    case: dict[str, Any], activations: torch.Tensor, tmp_path: Path
) -> None:
    from sae_lens import SAE

    sae = as_sae(drawn(**case), METADATA)
    save(sae, tmp_path)
    stock = SAE.load_from_disk(tmp_path)
    assert stock.cfg.architecture() == ("topk" if "k" in case else "standard")
    assert torch.equal(stock.encode(activations), sae.encode(activations))


def test_signed_latents_are_never_a_saelens_file(tmp_path: Path) -> None:
    save(as_sae(drawn(sign="signed"), METADATA), tmp_path)
    # SAELens would load one as an SAE with ReLU, and give other codes.
    assert [path.name for path in tmp_path.iterdir()] == [SIGNED_FILE]


def test_making_and_loading_one_draws_nothing_from_the_global_stream(tmp_path: Path) -> None:
    state = torch.get_rng_state()
    sae = as_sae(drawn(sign="signed"), METADATA)
    save(sae, tmp_path)
    load(tmp_path, sae.cfg.to_dict(), "cpu")
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"write": torch.ones(N - 1, D)}, r"write has the shape \[4, 4\]"),
        ({"read": torch.ones(N, D + 1)}, r"read has the shape \[5, 5\], expected \[n, d_in\] with d_in=4"),
        ({"read": torch.ones(0, D), "write": torch.ones(0, D)}, r"read has the shape \[0, 4\]"),
        ({"mean": torch.ones(D, 1)}, r"mean has the shape \[4, 1\]"),
        ({"mean": torch.full((D,), torch.nan)}, "mean holds numbers that are not finite"),
        ({"k": 11}, "k is 11, but there are 10 latents"),
        ({"k": 6, "sign": "relu"}, "k is 6, but there are 5 latents"),
        ({"k": 0}, "k is 0"),
        ({"k": 1, "sign": "signed"}, "k is for latents that are not below 0; sign is signed"),
    ],
)
def test_what_no_sae_can_be_made_of_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RunError, match=rf"^baselines/here: {message}"):
        check(drawn(**changes), "baselines/here", D)
