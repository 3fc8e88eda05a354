"""The pipeline that makes guard models: prune, distil, quantise, export, evaluate, pack."""
