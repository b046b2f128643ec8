"""The other ways to get canvases, which benchmarks.loader times beside ours."""
