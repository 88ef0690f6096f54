"""The command line with a report of a line: on a few hundred particles drawing one takes longer than all else.

`python -m end_to_end.without_report` in place of `flex-job`; ranks that such a job starts run this module too.
"""

from __future__ import annotations

import sys
from typing import Any

from integration.local.cli import main

__all__ = ["leave_out_reports", "short_report"]


def short_report(manifest: Any, *others: Any) -> tuple[str, ...]:
    """In place of `write_run_report`, which has tests of its own."""
    from flex_job.fsc import FscCurves
    from flex_job.run_report import REPORT_FILES, summary_lines

    for name in REPORT_FILES:
        (manifest.folder / name).write_text(name)
    rigid, flex = (each for each in others if isinstance(each, FscCurves))
    return summary_lines(rigid, flex, 1.0, 2.0, 10.0)


def leave_out_reports() -> None:
    import flex_job.refine

    flex_job.refine.write_run_report = short_report


starts_ranks = __name__ == "__main__" and any(word.startswith("cpu:") for word in sys.argv)
if __name__ in ("__main__", "__mp_main__") and not starts_ranks:  # the second is what multiprocessing calls it
    leave_out_reports()
if __name__ == "__main__":
    main()
