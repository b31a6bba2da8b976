"""Each script measures one kind of figure: `python -m benchmarks.NAME [--quick] [--json FILE]` prints and writes it."""
