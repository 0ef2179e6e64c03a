"""Reports: figures, files, and text and progress for a terminal."""
