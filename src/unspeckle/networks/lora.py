"""Adapters of low rank beside layers that stay as they are (Hu et al. 2021): to learn, to switch off, or to merge."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unspeckle.networks.layers import UpsampleConv, upsample_2x

ModelParts = Mapping[str, nn.Module]  # of a model, by the first word of their layers' names


class Adapter(nn.Module):
    """scale · up · down. For a linear layer down is (r, I) and up (O, r); for a convolution (r, I, h, w) and
    (O, r, 1, 1). strength: a factor more, of the person's; 0 switches it off."""

    def __init__(self, down: Tensor, up: Tensor, scale: float = 1.0) -> None:
        super().__init__()
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)
        self.scale, self.strength = scale, 1.0

    def forward(self, x: Tensor, layer: nn.Module) -> Tensor:
        """What is added to the layer's answer, computed in x's precision."""
        down, up = self.down.to(x.dtype), self.up.to(x.dtype)
        if isinstance(layer, nn.Conv2d):
            x = upsample_2x(x) if isinstance(layer, UpsampleConv) else x
            h = F.conv2d(F.conv2d(x, down, None, layer.stride, layer.padding), up)
        else:
            h = F.linear(F.linear(x, down), up)
        return self.strength * self.scale * h

    def weight_delta(self) -> Tensor:
        """What is added to the layer's weight, (O, I) or (O, I, h, w) float32."""
        up, down = self.up.float().flatten(1), self.down.float().flatten(1)
        return (self.strength * self.scale * (up @ down)).view(len(self.up), *self.down.shape[1:])


class AdaptedLayer(nn.Module):
    """A layer with its adapters, in the place of the layer."""

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
        """As it would be merged, for whoever computes with the weight itself."""
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
    """Adapters by the full names of their layers, such as "network.down.0.transformer.layers.0.itself.query"."""

    def __init__(self, adapters: Mapping[str, Adapter]) -> None:
        super().__init__()
        self.adapters = nn.ModuleDict({name.replace(".", "/"): adapter for name, adapter in adapters.items()})

    def items(self) -> Iterator[tuple[str, Adapter]]:
        for name, adapter in self.adapters.items():
            assert isinstance(adapter, Adapter)
            yield name.replace("/", "."), adapter

    def set_strength(self, strength: float) -> "AdapterSet":
        """Make all of them so strong; 0 = off."""
        for _, adapter in self.items():
            adapter.strength = strength
        return self

    @torch.no_grad()
    def merge(self, parts: ModelParts) -> None:
        """Add them to the weights, as strong as they are."""
        for name, adapter in self.items():
            target = get_layer(parts, name)
            weight: Tensor = (target.layer if isinstance(target, AdaptedLayer) else target).weight  # type: ignore[assignment]
            weight.copy_(weight.float() + adapter.weight_delta().to(weight.device))

    def attach(self, parts: ModelParts) -> None:
        """Put them beside their layers, which stay as they are."""
        for name, adapter in self.items():
            target = get_layer(parts, name)
            if not isinstance(target, AdaptedLayer):
                target = AdaptedLayer(target)
                _set_layer(parts, name, target)
            target.adapters.append(adapter.to(target.weight.device))

    def detach(self, parts: ModelParts) -> None:
        """Take them away again."""
        for name, adapter in self.items():
            target = get_layer(parts, name)
            assert isinstance(target, AdaptedLayer)
            target.adapters = nn.ModuleList(remaining for remaining in target.adapters if remaining is not adapter)
            if not target.adapters:
                _set_layer(parts, name, target.layer)


def get_layer(parts: ModelParts, name: str) -> nn.Module:
    """The layer of that full name, with its adapters where it has some."""
    part, _, path = name.partition(".")
    return parts[part].get_submodule(path)


def _set_layer(parts: ModelParts, name: str, module: nn.Module) -> None:
    parent_name, _, attribute = name.rpartition(".")
    setattr(get_layer(parts, parent_name) if "." in parent_name else parts[parent_name], attribute, module)


def find_attached_adapters(module: nn.Module) -> list[Adapter]:
    """All adapters that are attached within the module."""
    return [submodule for submodule in module.modules() if isinstance(submodule, Adapter)]


def find_target_layers(parts: ModelParts) -> list[str]:
    """The layers that learn best: the linear ones of attention and feed-forward."""
    named_modules = (
        (f"{part}.{name}", submodule) for part, module in parts.items() for name, submodule in module.named_modules()
    )
    return [name for name, submodule in named_modules if isinstance(submodule, nn.Linear) and ".layers." in name]


def init_adapters(parts: ModelParts, rank: int, seed: int) -> AdapterSet:
    """Adapters of the parts' targets that begin as nothing (up is zero), the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)

    def init_adapter(linear: nn.Module) -> Adapter:
        assert isinstance(linear, nn.Linear)
        r = min(rank, linear.in_features, linear.out_features)
        bound = linear.in_features**-0.5  # as a linear layer of torch begins
        down = (torch.rand(r, linear.in_features, generator=generator, device="cpu") * 2 - 1) * bound
        return Adapter(down, torch.zeros(linear.out_features, r, device="cpu"))

    return AdapterSet({name: init_adapter(get_layer(parts, name)) for name in find_target_layers(parts)})
