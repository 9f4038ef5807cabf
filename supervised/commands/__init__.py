"""The sub-commands of `upi-trm supervised`, and what they and their jobs need.

`training`, `measuring`, `caches` and `data` hold the commands, `options` what these share;
`run_sources` opens run folders for jobs, `official` imports published weights, `costs` counts.
"""
