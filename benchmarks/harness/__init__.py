"""What every benchmark is written on: cases, timing, ceilings, rows and the table.

A benchmark is a module benchmarks/<stem>.py with one function:

    def cases(device: torch.device, quick: bool) -> Iterator[Case]: ...

It yields one Case after another and may free the tensors of the last one before it makes the next.
With `quick` it yields few, small cases (tests run them). benchmarks/README.md shows a whole one.
"""

from benchmarks.harness.case import OURS as OURS
from benchmarks.harness.case import Candidate as Candidate
from benchmarks.harness.case import Case as Case
from benchmarks.harness.case import accuracy_check as accuracy_check
from benchmarks.harness.case import missing as missing
