"""How fast is it, and compared with what? One file per question, run by `python -m benchmarks`."""
