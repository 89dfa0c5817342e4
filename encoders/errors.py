"""One way to report bad input: what was found, what was wanted, the way out.

The lowest package defines it, so that encoders, projectors and the toolkit report alike.
"""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing wrong with an input.

    Parameters
    ----------
    code : str
        Short stable kebab-case name, e.g. ``"vcf-no-index"``; scripts and tests match on it.
    where : str
        File (with line or row, 1-based as an editor shows it), or the configuration key.
    found : str
        What is there.
    wanted : str
        What should be there.
    fix : str
        The way out, if it does not follow from `wanted`.
    """

    code: str
    where: str
    found: str
    wanted: str
    fix: str = ""

    def __str__(self) -> str:
        text = f"{self.where}: {self.found}; {self.wanted}"
        return f"{text}; {self.fix}" if self.fix else text


class InputError(ValueError):
    """Bad input from the user: files, identifiers or configuration. The commands exit with code 2.

    Parameters
    ----------
    problems : Problem or iterable of Problem
        Everything found wrong, at least one.
    """

    def __init__(self, problems: Problem | Iterable[Problem]) -> None:
        self.problems: tuple[Problem, ...] = (
            (problems,) if isinstance(problems, Problem) else tuple(problems)
        )
        super().__init__("\n".join(str(problem) for problem in self.problems))
