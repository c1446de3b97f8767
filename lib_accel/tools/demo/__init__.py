"""The demonstration: images with acceleration off and on, within a time that it keeps."""
