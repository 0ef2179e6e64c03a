"""Gates and weights learned; every run can be resumed at any step."""
