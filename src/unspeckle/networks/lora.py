"""Low-rank adapters (LoRA; Hu et al. 2021) beside layers that stay as they are: to train, to switch off, or to
merge."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.layers import UpsampleConv, upsample_2x

ModelModules = Mapping[str, nn.Module]  # of a model, by the first word of their layers' full names


class Adapter(nn.Module):
    """What is added to the output of a linear layer or a convolution: strength · scale · up · down · x.

    For a linear layer from I to O features, down is (r, I) and up (O, r), r being the rank; for a convolution they are
    (r, I, h, w) and (O, r, 1, 1). scale is part of the adapter (alpha / r in files); strength is the user's, 0 =
    off."""

    def __init__(self, down: Tensor, up: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.scale, self.strength = scale, 1.0

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What is added to the layer's output for x, computed in x's dtype."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            x = upsample_2x(x) if isinstance(layer, UpsampleConv) else x
            h = F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up)
        else:
            h = F.linear(F.linear(x, down), up)
        return self.strength * self.scale * h

    def weight_delta(self) -> Tensor:
        """What it amounts to as a change of the layer's weight, (O, I) or (O, I, h, w) float32."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return (self.strength * self.scale * (up @ down)).view(len(self.up), *self.down.shape[1:])


class AdaptedLayer(nn.Module):
    """A layer with its adapters, put where the layer was."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.adapters = layer, nn.ModuleList()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x)
        for adapter in self.adapters:
            if adapter.strength:
                out = out + adapter(x, self.layer)
        return out

    @property
    def weight(self) -> Tensor:
        """The weight as merging would make it, for callers that compute with the weight itself."""
        weight: Tensor = self.layer.weight  # type: ignore[assignment]
        deltas = [adapter.weight_delta() for adapter in self.adapters if adapter.strength]  # type: ignore[operator]
        return (weight.float() + sum(deltas)).to(weight.dtype) if deltas else weight

    @property
    def bias(self) -> Tensor | None:
        return self.layer.bias  # type: ignore[return-value]

    @property
    def out_features(self) -> int:
        return self.layer.out_features  # type: ignore[return-value]


class AdapterSet(nn.Module):
    """Adapters by the full names of their layers, such as
    "network.down_blocks.0.transformer.layers.0.self_attn.to_q"."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        super().__init__()
        # a ModuleDict allows no dots in its keys
        self.adapters = nn.ModuleDict({name.replace(".", "/"): adapter for name, adapter in adapters.items()})

    def items(self) -> Iterator[tuple[str, Adapter]]:
        """The full name of each layer, and its adapter."""
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, Adapter)
            yield name.replace("/", "."), adapter

    def set_strength(self, strength: float) -> "AdapterSet":
        """Set the strength of all adapters, 0 = off; returns the set itself."""
        for _, adapter in self.items():
            adapter.strength = strength
        return self

    @torch.no_grad()
    def merge(self, modules: ModelModules) -> None:
        """Add the adapters, at their present strength, to the weights of the model's layers."""
        for name, adapter in self.items():
            target = get_layer(modules, name)
            layer = target.layer if isinstance(target, AdaptedLayer) else target
            weight: Tensor = layer.weight  # type: ignore[assignment]
            weight.copy_(weight.float() + adapter.weight_delta().to(weight.device))

    def attach(self, modules: ModelModules) -> None:
        """Put the adapters beside the model's layers, whose weights stay as they are."""
        for name, adapter in self.items():
            target = get_layer(modules, name)
            if not isinstance(target, AdaptedLayer):
                target = AdaptedLayer(target)
                _replace_layer(modules, name, target)
            target.adapters.append(adapter.to(target.weight.device))

    def detach(self, modules: ModelModules) -> None:
        """Undo `attach`."""
        for name, adapter in self.items():
            target = get_layer(modules, name)
            assert isinstance(target, AdaptedLayer)
            target.adapters = nn.ModuleList(other for other in target.adapters if other is not adapter)
            if not target.adapters:
                _replace_layer(modules, name, target.layer)


def get_layer(modules: ModelModules, name: str) -> nn.Module:
    """The layer of that full name; an AdaptedLayer where adapters are attached to it."""
    module, _, path = name.partition(".")
    return modules[module].get_submodule(path)


def _replace_layer(modules: ModelModules, name: str, layer: nn.Module) -> None:
    parent_name, _, attribute = name.rpartition(".")
    parent = get_layer(modules, parent_name) if "." in parent_name else modules[parent_name]
    setattr(parent, attribute, layer)


def find_attached_adapters(module: nn.Module) -> list[Adapter]:
    """All adapters that are attached within the module."""
    return [submodule for submodule in module.modules() if isinstance(submodule, Adapter)]


def find_target_layers(modules: ModelModules) -> list[str]:
    """The full names of the layers that are worth adapting: the linear ones of attention and feed-forward."""
    return [
        f"{prefix}.{name}"
        for prefix, module in modules.items()
        for name, submodule in module.named_modules()
        if isinstance(submodule, nn.Linear) and ".layers." in f"{prefix}.{name}"
    ]


def init_adapters(modules: ModelModules, rank: int, seed: int) -> AdapterSet:
    """New adapters for all target layers, the same for the same seed. They add nothing at first, since up is zero."""
    generator = torch.Generator().manual_seed(seed)

    def init_adapter(linear: nn.Module) -> Adapter:
        assert isinstance(linear, nn.Linear)
        r = min(rank, linear.in_features, linear.out_features)
        bound = linear.in_features**-0.5  # as torch initializes a linear layer
        down = (torch.rand(r, linear.in_features, generator=generator, device="cpu") * 2 - 1) * bound
        return Adapter(down, torch.zeros(linear.out_features, r, device="cpu"))

    return AdapterSet({name: init_adapter(get_layer(modules, name)) for name in find_target_layers(modules)})
