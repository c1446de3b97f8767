"""From a unit of the architecture to native code: the backends, and the accuracy check."""
