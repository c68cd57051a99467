//! The programs of the datapath.
//!
//! | program | attached to ingress of | handles |
//! | --- | --- | --- |
//! | `endpoint` | the host-side device of an endpoint | all packets from the container |
//! | `underlay` | the data-path device | VXLAN to this node, packets to published ports |
//! | `overlay` | the VXLAN device | packets that the underlay program left to it |
//! | `host` | `mesh0p` | packets from the host to endpoints and to published ports |
//! | `wireguard` | `meshwg0` | packets that the WireGuard engine decrypted |
//! | `published` | the host's other interfaces | packets to published ports |
//! | `published_l3` | the same without Ethernet headers | packets to published ports |
//!
//! `underlay`, `published` and `published_l3` ignore all other packets.
//!
//! `egress` is attached to egress of the data-path device. It sees packets that leave after the
//! host's own NAT.
//!
//! These are tc programs. `early`, an XDP program, runs before `underlay`. It handles packets that
//! `underlay` would send, on the fast path, out of the device where they arrived.
//!
//! In addition, `connect4`, `sendmsg4`, `recvmsg4`, `getpeername4` and their IPv6 variants are
//! attached to the root cgroup, for the host's own sockets.

#![cfg_attr(target_arch = "bpf", no_std, no_main)]
#![cfg_attr(
    target_arch = "bpf",
    expect(
        unsafe_code,
        clippy::inline_always,
        reason = "helpers and maps are the kernel's; a function call costs a frame of the 512-byte stack"
    )
)]

#[cfg(target_arch = "bpf")]
mod datapath;

/// The programs run only in the kernel. Parts that do not need it are in the library, which is
/// tested here.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
