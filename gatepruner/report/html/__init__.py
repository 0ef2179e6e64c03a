"""`report.html`: its content as values, the elements it is made of, template, style and script."""
