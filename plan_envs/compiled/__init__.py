"""What compiled domains and engines share: bits, domains over kernels, engines in packed rows."""
