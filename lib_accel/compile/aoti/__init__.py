"""Makes artifacts: `unit` compiles one unit, `verify` checks it, `worker` does both in a child process, `job` runs the children
(`pool`) and clears up after them (`ending`)."""
