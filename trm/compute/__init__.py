"""Where and how numbers are computed: devices, processes, random streams, jobs."""
