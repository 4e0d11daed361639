"""How fast the harness is: `python -m bench.speed` measures it and writes results/performance.{md,json}."""
