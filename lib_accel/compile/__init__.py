"""From a unit of the architecture to native code: what machine this is, the key, the compilers, the accuracy check."""
