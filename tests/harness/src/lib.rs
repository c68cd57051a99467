//! The lab: hosts and containers in network namespaces, used by tests, demo and benchmarks alike
