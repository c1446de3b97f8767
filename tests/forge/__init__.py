"""Real Forges: pictures off against on. `ACCEL_FORGE=FOLDER python3 -m tests tests/forge`."""
