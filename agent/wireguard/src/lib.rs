//! WireGuard between hosts.
