"""`bench score`: scores of any video files by any evaluator, one row per video and metric, resumable."""
