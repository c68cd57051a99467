//! What touches the kernel: netlink, eBPF, nftables, network namespaces

pub mod programs;
