"""A simulated cohort in the file formats people have; imported lazily, it needs no torch."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from multimodal.simulate.cohort import simulate_cohort
    from multimodal.simulate.options import SimulationOptions

__all__ = ["SimulationOptions", "simulate_cohort"]


def __getattr__(name: str) -> Any:
    """Import the public names when they are first asked for."""
    if name == "simulate_cohort":
        from multimodal.simulate.cohort import simulate_cohort

        return simulate_cohort
    if name == "SimulationOptions":
        from multimodal.simulate.options import SimulationOptions

        return SimulationOptions
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
