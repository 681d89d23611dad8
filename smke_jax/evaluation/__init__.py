"""One evaluator per file: retrieval (with ranking and median_rank), and attribute probes on the drawn scenes."""
