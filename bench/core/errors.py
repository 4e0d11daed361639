"""The exceptions of the project and the exit codes of the command line. The tree:

    Exception
    ├── BenchError                    the user can fix it: one sentence with what, where and how to fix
    │   ├── DivergedError             a number of a run is not finite
    │   ├── RunLockedError            another process works on the run
    │   ├── BudgetFieldError          a method class declares a field of the budget, or one reserved for the suite
    │   ├── ProcessStateError         a plug-in changes a global setting, or code of the harness
    │   ├── PeerLostError             another process of the run ended or hangs (bench.core.world)
    │   ├── KilledError               a process of the run was killed from outside (bench.launch.torchrun)
    │   └── NotAffineError            a method's step is not affine in x and v (bench.audit.sde.kernel)
    └── CheckError                    one finding of `bench check` (bench.checks.violations)

Who catches what:

- `bench.train.run.execute` turns a `DivergedError` into a record with status "failed": the run counts as finished.
- The launchers end one run with any other error and go on with the rest. A process of a distributed run reports its
  error to the launcher, which reports the cause and not the `PeerLostError` of the other processes.
- The command line prints the sentence of a `BenchError` to stderr. Any other exception is a bug and shows a traceback.

Exit codes: 0 success; 1 the command worked and its result is negative (a failed run or check, a difference), or a bug;
2 a `BenchError`, a run that stopped with an error, a plan that does not fit into memory, or wrong options; 130 Ctrl-C.
"""

from __future__ import annotations

import sys
import sysconfig
import traceback
from pathlib import Path


class BenchError(Exception):
    """An error that the user can fix. The message is one sentence: what, where (file or key) and how to fix it."""


class DivergedError(BenchError):
    """A number of a run is not finite. The run is recorded as failed and counted, never dropped."""


class RunLockedError(BenchError):
    """Another process works on the same run. `bench run` waits for it."""


class BudgetFieldError(BenchError):
    """A method class declares a field that belongs to the suite's budget."""


class ProcessStateError(BenchError):
    """A plug-in changes a global setting of torch or numpy, or replaces code of the harness."""


def plugin_error(error: Exception) -> str | None:
    """One sentence on an exception that passed through a file of the user, such as a plug-in; None for any other."""
    project = Path(__file__).resolve().parents[2]
    others = [
        *(project / name for name in ("bench", "methods", "evaluators")),
        Path(sys.prefix),
        Path(sys.base_prefix),
    ]
    others += map(Path, (sysconfig.get_path("stdlib"), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")))
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        path = Path(frame.filename)
        if path.is_file() and not any(path.resolve().is_relative_to(other.resolve()) for other in others):
            text = " ".join(str(error).split())
            where = f"{path}, line {frame.lineno}"
            return f"{where}: {type(error).__name__}: {text}; `bench check` shows what a plug-in breaks."
    return None
