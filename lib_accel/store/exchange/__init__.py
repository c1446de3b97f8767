"""What stores pass on to one another: archives, and signatures that others can check."""
