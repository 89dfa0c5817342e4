"""How Lightning trains an `AlignModule` that is split between processes.

Lightning's own ``FSDPStrategy`` wants CUDA, and its ``ModelParallelStrategy`` refuses float64,
writes optimiser states that no other strategy reads, and makes them up where there are none yet.
"""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.optim import Optimizer

from multimodal.align.gather import process_count
from multimodal.align.module import AlignModule
from multimodal.align.sharding import make_equal, split_optimizer_state, whole_optimizer_state


class ShardedStrategy(DDPStrategy):
    """Data parallel training in which every process holds a share of parameters.

    Checkpoints are those of one process that holds all: any strategy goes on with them.
    """

    @property
    def _aligned(self) -> AlignModule:
        module = self.lightning_module
        assert isinstance(module, AlignModule)
        return module

    def model_to_device(self) -> None:
        """Split the networks unit by unit, so that no device ever holds all of them."""
        make_equal(self._aligned, self.root_device)
        mesh = init_device_mesh(self.root_device.type, (process_count(),))
        self._aligned.shard(mesh)
        super().model_to_device()

    def configure_ddp(self) -> None:
        """Wrap nothing: split units reduce their gradients themselves."""

    def lightning_module_state_dict(self) -> dict[str, Tensor]:
        """Return the state in whole tensors, in the first process; empty in the others."""
        return self._aligned.checkpoint_state()

    def optimizer_state(self, optimizer: Optimizer) -> dict[str, Any]:
        """Return the state in whole tensors, in the first process."""
        return whole_optimizer_state(super().optimizer_state(optimizer), self.is_global_zero)

    def load_optimizer_state_dict(self, checkpoint: Mapping[str, Any]) -> None:
        """Take this process's share of whole tensors."""
        states = zip(self.optimizers, checkpoint["optimizer_states"], strict=True)
        split = [split_optimizer_state(state, optimizer) for optimizer, state in states]
        super().load_optimizer_state_dict({**checkpoint, "optimizer_states": split})

    def teardown(self) -> None:
        """Leave the shares where they are: `AlignModule.join` puts them together."""
        assert self.cluster_environment is not None
        assert self.accelerator is not None
        self.cluster_environment.teardown()
        self.precision_plugin.teardown()
        self.accelerator.teardown()
        self.checkpoint_io.teardown()
