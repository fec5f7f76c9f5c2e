"""Reports of a run and of a cross-validation: each one HTML file that opens offline."""

from tumorlens.report.folds_page import write_folds_page
from tumorlens.report.run_page import write_report

__all__ = ["write_folds_page", "write_report"]
