"""What runs a backbone's network: torch, or OpenVINO on a CPU. The torch network stays the one that is saved."""

import importlib.util
import logging
import threading
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from oddpatch.backbones.folding import fold
from oddpatch.engines import ENGINES, openvino_core
from oddpatch.errors import ConfigError

if TYPE_CHECKING:
    from oddpatch.backbones.base import Backbone

log = logging.getLogger(__name__)

PRECISIONS: dict[str, torch.dtype | None] = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
OPENVINO_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}


@dataclass(frozen=True)
class Runtime:
    """How a network is run; none of it changes what is saved.

    Args:
        engine: "torch", or "openvino": faster on a CPU (docs/backbones.md), equal to float rounding. It needs the extra
            `oddpatch[openvino]` (without it torch runs the network, and says so) and serves images on the CPU.
        precision: "fp32", on a GPU too, unlike torch, whose convolutions are in TF32 there; or for GPUs "tf32", "bf16"
            or "fp16": features and scores change (docs/backbones.md). On a CPU "tf32" is "fp32".
        compile: run the torch network through `torch.compile`; for GPUs, needs a compiler for CPUs.
        fold: let torch on a CPU, in float32, compute BatchNorms, padding and activations within convolutions: faster,
            and equal to float rounding (docs/performance.md).

    Raises:
        ConfigError: unknown engine or precision, or one of these with an engine that cannot do it.
    """

    engine: str = "torch"
    precision: str = "fp32"
    compile: bool = False
    fold: bool = True

    def __post_init__(self) -> None:
        if self.engine not in ENGINES:
            raise ConfigError(f"backbone.engine={self.engine!r}: choose one of {', '.join(ENGINES)}")
        if self.precision not in PRECISIONS:
            raise ConfigError(f"backbone.precision={self.precision!r}: choose one of {', '.join(PRECISIONS)}")
        if self.engine == "openvino" and self.precision not in OPENVINO_PRECISIONS:
            raise ConfigError(f"backbone.precision={self.precision} is for GPUs: set backbone.engine=torch, or fp32")
        if self.compile and self.engine != "torch":
            raise ConfigError(f"backbone.compile=true needs backbone.engine=torch, not {self.engine}")


def make_engine(runtime: Runtime) -> "TorchEngine | OpenVINOEngine":
    """The engine that `runtime` asks for."""
    if runtime.engine == "openvino":
        if importlib.util.find_spec("openvino") is not None:
            return OpenVINOEngine(runtime.precision)
        log.warning(
            "backbone.engine=openvino: OpenVINO is not installed, so torch runs the network, more slowly: "
            "pip install 'oddpatch[openvino]'"
        )
        runtime = replace(runtime, engine="torch")
    return TorchEngine(runtime)


def is_being_exported() -> bool:
    """Whether the network is being traced, exported or compiled from outside: then only its own torch code will do."""
    return torch.jit.is_tracing() or torch.compiler.is_compiling() or torch.compiler.is_exporting()


class _Snapshot:
    """What a network consists of, to notice later that it has changed."""

    def __init__(self, network: nn.Module) -> None:
        # Not the modules themselves: the network has this, by its engine, and would outlive its last user.
        self.hooks = [(module._forward_hooks, module._forward_pre_hooks) for module in network.modules()]
        self.parts = [
            (held, name, part)
            for module in network.modules()
            for held in (module._parameters, module._buffers, module._modules)
            for name, part in held.items()
        ]
        self.tensors = [*network.parameters(), *network.buffers()]
        self.stamp = self._stamp()

    def _stamp(self) -> list[tuple[int, int]]:
        """What changes when a tensor is written to, converted or moved."""
        return [(tensor.data_ptr(), 0 if tensor.is_inference() else tensor._version) for tensor in self.tensors]

    def has_changed(self) -> bool:
        """Whether a tensor or a module has been written to or replaced since."""
        return any(held.get(name) is not part for held, name, part in self.parts) or self._stamp() != self.stamp

    def is_watched(self) -> bool:
        """Whether a hook wants to see the network's own modules."""
        return any(after or before for after, before in self.hooks)


class TorchEngine:
    """Runs the torch network: as it is, in a lower precision, or compiled. Features come out as float32 always.

    In float32 on a CPU, without gradients, BatchNorm and activations are folded into the convolutions: a fifth to
    a third less time for EfficientNet-Lite0, and features that are equal to float rounding (docs/backbones.md). Changed
    weights are detected and folded again.
    """

    def __init__(self, runtime: Runtime) -> None:
        self.runtime = runtime
        self.takes_whole_batches = runtime.compile  # a part of another size would be recompiled
        # What is larger than anything given back before, glibc gets from the system and returns to it each time: a
        # sixth of the time of an image is spent on new pages. 32 MiB is the most that it takes for large; none is used.
        torch.empty(2**25 - 2**16, dtype=torch.uint8)
        self.reset()

    def reset(self) -> None:
        """Forget what was made from the network as it was."""
        self._compiled: Callable[[Tensor], list[Tensor]] | None = None
        #: The network as it was, and what was made of it, or None where that cannot be.
        self._folded: tuple[_Snapshot, Backbone | None] | None = None

    def __call__(self, backbone: "Backbone", images: Tensor) -> list[Tensor]:
        """Feature maps of `backbone` for images (B, 3, H, W)."""
        dtype = PRECISIONS[self.runtime.precision]
        run: Callable[[Tensor], list[Tensor]] = backbone.forward
        if self.runtime.compile:
            if self._compiled is None:
                self._compiled = torch.compile(backbone.forward)
            run = self._compiled
        elif dtype is None and self.runtime.fold:
            run = self._folded_or_not(backbone, images)
        if dtype is None:
            return run(images)
        with torch.autocast(images.device.type, dtype):
            return [feature.float() for feature in run(images)]

    def _folded_or_not(self, backbone: "Backbone", images: Tensor) -> Callable[[Tensor], list[Tensor]]:
        """What runs the network for these images: its folded copy if there is one, else the network itself."""
        plain = partial(nn.Module.__call__, backbone)
        if images.device.type != "cpu" or torch.is_grad_enabled():
            return plain
        known = self._folded
        if known is None or known[0].has_changed():
            seen = _Snapshot(backbone)
            if seen.is_watched():
                return plain
            known = self._folded = (
                seen, fold(backbone, (images.shape[-2], images.shape[-1])) if seen.tensors else None
            )  # fmt: skip
        seen, folded = known
        # oneDNN makes numbers of NaN. The sum is not finite either where values are so large that features may not be.
        if folded is None or seen.is_watched() or not images.sum().isfinite():
            return plain
        return folded.forward

    def __getstate__(self) -> dict[str, Any]:
        return {"runtime": self.runtime}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]  # a copy compiles and folds for its own network


class OpenVINOEngine:
    """Runs the network on the CPU with OpenVINO, converted when images of a new size first come; any batch size.

    Changed weights are detected, and the network is converted again. A copy, or an unpickled one, converts for itself.
    """

    #: Image sizes for which a converted network is kept.
    KEEP = 3
    takes_whole_batches = True  # it keeps its memory from one batch to the next

    def __init__(self, precision: str = "fp32") -> None:
        self.precision = precision
        self._lock = threading.Lock()  # one request at a time: each uses all cores
        self.reset()

    def reset(self) -> None:
        """Forget what was made from the network as it was."""
        self._networks: dict[tuple[int, int], Any] = {}
        self._seen: _Snapshot | None = None

    def __call__(self, backbone: "Backbone", images: Tensor) -> list[Tensor]:
        """Feature maps of `backbone` for images (B, 3, H, W); torch makes them for other devices and for gradients."""
        if images.device.type != "cpu" or (torch.is_grad_enabled() and images.requires_grad):
            return backbone.forward(images)
        batch = images.detach().float().contiguous()
        with self._lock:
            outputs = self._network(backbone, (images.shape[2], images.shape[3]))(batch.numpy())
        return [torch.from_numpy(outputs[i]) for i in range(len(outputs))]  # OpenVINO has copied them out

    def _network(self, backbone: "Backbone", size: tuple[int, int]) -> Any:
        # Weights loaded into a part of the network are seen too.
        if self._seen is not None and self._seen.has_changed():
            self.reset()
        network = self._networks.pop(size, None)
        if network is None:
            self._seen = self._seen or _Snapshot(backbone)
            network = compile_openvino(backbone, size, self.precision)
        self._networks[size] = network  # the size used last comes last
        if len(self._networks) > self.KEEP:
            del self._networks[next(iter(self._networks))]
        return network

    def __getstate__(self) -> dict[str, Any]:
        return {"precision": self.precision}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]


class _Forward(nn.Module):
    """The network's own forward, whatever engine it is set to, with a tuple as its result."""

    def __init__(self, backbone: "Backbone") -> None:
        super().__init__()
        self.backbone = backbone
        self.eval()

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.backbone.forward(images))


def compile_openvino(backbone: "Backbone", size: tuple[int, int], precision: str = "fp32") -> Any:
    """`backbone` as an OpenVINO network for images of `size` (H, W) in batches of any size.

    It runs on as many threads as torch does.
    """
    import openvino as ov

    # Traced with two images: with one, an architecture may take the batch for a size that is fixed.
    example = torch.zeros(2, 3, *size)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing warns of every size it takes as fixed, and image sizes are fixed here
        try:
            network = ov.convert_model(_Forward(backbone.for_size(size)), example_input=example, input=[-1, 3, *size])
        except ov.frontend.OpConversionFailure as error:
            reason = str(error).strip().splitlines()[-1]
            raise ConfigError(f"OpenVINO cannot convert this backbone ({reason}): set backbone.engine=torch") from error
    settings = {
        "INFERENCE_PRECISION_HINT": OPENVINO_PRECISIONS[precision],  # else bf16 where the CPU has it
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    return openvino_core().compile_model(network, "CPU", settings)
