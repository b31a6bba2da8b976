"""Charts of the committed results: `data` says what each shows, `drawing` how it looks."""
