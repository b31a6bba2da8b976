"""Charts show the committed results: `data` selects what each shows, `drawing` how it looks."""
