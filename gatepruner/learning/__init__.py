"""Learning gates and training weights; every run can be resumed at any step."""
