//! Pools, blocks, leases and address assignment, without I/O, clock or randomness
