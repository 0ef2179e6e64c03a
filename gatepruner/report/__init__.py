"""Reports: figures for a paper, files for a program, tables and progress for a terminal."""
