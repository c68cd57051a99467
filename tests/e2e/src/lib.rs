//! Black-box scenarios against the real binaries
