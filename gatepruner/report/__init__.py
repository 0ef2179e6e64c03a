"""Reports: figures for a paper, files for a program, tables and progress for a terminal."""

from __future__ import annotations

from gatepruner.report.files import Report as Report
from gatepruner.report.files import write_report as write_report
