"""Engines: what runs a network where it is deployed.

An engine is a class with an entry in `ENGINES`: it is constructed from a program, example images
and a number of threads, and then maps images to logits. torch is not imported here, so that the
command line can offer the engines at once.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, ClassVar

from gatepruner.errors import DeviceError, EngineError, nearest

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from gatepruner.measuring.programs import Program


class Engine(ABC):
    """A program that is ready to run.

    Attributes:
        packages: what it imports.
        extra: the extra of gatepruner that installs these.
        devices: types of the devices that it runs on, the usual one first.
        reads_onnx: whether it runs a program in the form of ONNX.
    """

    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""
    devices: ClassVar[tuple[str, ...]] = ("cpu",)
    reads_onnx: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, program: Program, images: Tensor, threads: int) -> None:
        """Prepare a program for images like these and so many CPU threads."""

    @abstractmethod
    def __call__(self, images: Tensor) -> Tensor:
        """The logits of images on the engine's device; on GPUs without waiting for them."""


class Eager(Engine):
    """PyTorch, operation by operation."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda", "mps")
    reads_onnx: ClassVar[bool] = False

    def __init__(self, program: Program, images: Tensor, threads: int) -> None:
        self.run: Callable[[Tensor], Tensor] = program.on(images.device)

    def __call__(self, images: Tensor) -> Tensor:
        return self.run(images)


class Compiled(Eager):
    """`torch.compile`, which generates code for this machine."""

    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def __init__(self, program: Program, images: Tensor, threads: int) -> None:
        import torch

        # A copy: torch compiles no function more than eight times, then runs it as it is.
        module = copy.deepcopy(program.on(images.device))
        self.run = torch.compile(module, dynamic=False)
        self.run(images)  # it is compiled when it is first called


class OnnxRuntime(Engine):
    """ONNX Runtime, https://onnxruntime.ai, on the CPU."""

    packages = ("onnx", "onnxscript", "onnxruntime")
    extra = "onnx"

    def __init__(self, program: Program, images: Tensor, threads: int) -> None:
        self._open(program.onnx.SerializeToString(), threads)

    @classmethod
    def of(cls, model: bytes, threads: int) -> OnnxRuntime:
        """An ONNX file that is already there, such as a quantised one."""
        engine = cls.__new__(cls)
        engine._open(model, threads)
        return engine

    def _open(self, model: bytes, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3  # errors
        # Threads that wait for more work would take the time of what runs in turns with it.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        self.session = onnxruntime.InferenceSession(
            model, options, providers=["CPUExecutionProvider"]
        )
        self.name = self.session.get_inputs()[0].name

    def __call__(self, images: Tensor) -> Tensor:
        import torch

        (logits,) = self.session.run(None, {self.name: images.numpy()})
        return torch.from_numpy(logits)


class OpenVino(Engine):
    """OpenVINO, https://docs.openvino.ai, on the CPU in single precision."""

    packages = ("onnx", "onnxscript", "openvino")
    extra = "openvino"

    def __init__(self, program: Program, images: Tensor, threads: int) -> None:
        import openvino

        core = openvino.Core()
        model = core.read_model(program.onnx.SerializeToString(), b"")
        model.reshape(list(images.shape))  # a batch of any size takes longer
        settings = {
            "INFERENCE_NUM_THREADS": threads,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": "f32",  # where the CPU has bf16, that is the default
        }
        self.request = core.compile_model(model, "CPU", settings).create_infer_request()

    def __call__(self, images: Tensor) -> Tensor:
        import torch

        (logits,) = self.request.infer({0: images.numpy()}, share_inputs=True).values()
        return torch.from_numpy(logits)


class TensorRt(Engine):
    """TensorRT, https://developer.nvidia.com/tensorrt, on a GPU of NVIDIA's."""

    packages = ("onnx", "onnxscript", "tensorrt")
    extra = "tensorrt"
    devices = ("cuda",)

    def __init__(self, program: Program, images: Tensor, threads: int) -> None:
        import tensorrt
        import torch

        logger, shape = tensorrt.Logger(tensorrt.Logger.ERROR), tuple(images.shape)
        with torch.cuda.device(images.device):  # it is built for the current one
            plan = self._plan(tensorrt, logger, program.onnx.SerializeToString(), shape)
            self.engine = tensorrt.Runtime(logger).deserialize_cuda_engine(plan)
            self.context = self.engine.create_execution_context()
            # On the default stream it would wait for the GPU before and after each pass.
            self.stream = torch.cuda.Stream(images.device)  # type: ignore[no-untyped-call]
        self.source, self.target = (self.engine.get_tensor_name(index) for index in (0, 1))
        self.context.set_input_shape(self.source, shape)
        self.size = tuple(self.context.get_tensor_shape(self.target))

    @staticmethod
    def _plan(tensorrt: Any, logger: Any, model: bytes, shape: tuple[int, ...]) -> Any:
        """The network as code for the current GPU."""
        builder = tensorrt.Builder(logger)
        network, settings = builder.create_network(0), builder.create_builder_config()
        parser = tensorrt.OnnxParser(network, logger)
        if not parser.parse(model):
            raise RuntimeError(parser.get_error(0).desc())
        profile = builder.create_optimization_profile()
        profile.set_shape(network.get_input(0).name, shape, shape, shape)
        settings.add_optimization_profile(profile)
        plan = builder.build_serialized_network(network, settings)
        if plan is None:
            raise RuntimeError("TensorRT cannot build it; its log says why")
        return plan

    def __call__(self, images: Tensor) -> Tensor:
        import torch

        current = torch.cuda.current_stream(images.device)
        logits = torch.empty(self.size, device=images.device)
        self.stream.wait_stream(current)
        self.context.set_tensor_address(self.source, images.data_ptr())
        self.context.set_tensor_address(self.target, logits.data_ptr())
        self.context.execute_async_v3(self.stream.cuda_stream)
        current.wait_stream(self.stream)
        return logits


ENGINES: dict[str, type[Engine]] = {
    "eager": Eager,
    "compile": Compiled,
    "onnxruntime": OnnxRuntime,
    "openvino": OpenVino,
    "tensorrt": TensorRt,
}
"""The engines by name, on which latency is measured."""


def engine_named(name: str) -> type[Engine]:
    """An engine that is installed.

    Raises:
        EngineError: it is unknown or not installed; says how to install it.
    """
    if name not in ENGINES:
        raise EngineError(
            f"unknown engine {name!r}{nearest(name, list(ENGINES))}: expected {', '.join(ENGINES)}"
        )
    engine = ENGINES[name]
    require(f"the engine {name}", engine.packages, engine.extra)
    return engine


def ready(name: str, program: Program, images: Tensor, threads: int) -> Engine:
    """A program on an engine, after its first pass, in which some engines still prepare.

    Args:
        name: of the engine.
        program: what to run.
        images: `(N, C, H, W)`, on the device to run on.
        threads: CPU threads.

    Raises:
        EngineError: the engine is not installed or cannot run the program; names the operation.
    """
    from gatepruner.measuring.programs import refusing, silent

    engine = engine_named(name)
    with silent(), refusing(f"{name} cannot run {program.name}"):
        running = engine(program, images, threads)
        running(images)
    return running


def require(what: str, packages: tuple[str, ...], extra: str) -> None:
    """Raise an `EngineError` with the line that installs packages, if any is missing."""
    if missing := list(filter(_is_missing, packages)):
        raise EngineError(f"{what} needs {', '.join(missing)}: pip install 'gatepruner[{extra}]'")


def _is_missing(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is None
    except (ImportError, ValueError):  # something hides it
        return True


def check_engine(name: str) -> None:
    """Refuse an engine that cannot run on this machine.

    Raises:
        EngineError: it is unknown or not installed.
        DeviceError: this machine does not have the device that it needs.
    """
    from gatepruner.measuring.device import pick_device

    pick_device(engine_named(name).devices[0])


def device_of(name: str, device: str | torch.device) -> torch.device:
    """Where an engine is measured if a device computes: there, or else where the engine runs.

    Raises:
        DeviceError: this machine has no device that the engine runs on.
    """
    from gatepruner.measuring.device import pick_device

    device, devices = pick_device(device), engine_named(name).devices
    return device if device.type in devices else pick_device(devices[0])


def threads_of(threads: int | None) -> int:
    """A number of CPU threads; by default, as many as PyTorch uses.

    Raises:
        DeviceError: this machine does not have so many, or it is none.
    """
    import torch

    if threads is None:
        return torch.get_num_threads()
    most = processors()
    if not 1 <= threads <= most:
        raise DeviceError(
            f"cannot use {threads} threads: this machine has {most} for this process; choose 1 to "
            f"{most}"
        )
    return threads


def processors() -> int:
    """How many CPU threads of the machine this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@contextlib.contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    """PyTorch with so many CPU threads, for as long as it takes."""
    import torch

    before = torch.get_num_threads()
    if threads == before:
        yield
        return
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)
