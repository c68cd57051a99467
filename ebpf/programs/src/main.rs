//! The programs of the datapath.
//!
//! | program | at the ingress of | takes |
//! | --- | --- | --- |
//! | `endpoint` | the host-side device of an endpoint | all that the container sends |
//! | `underlay` | the data-path device | VXLAN to this node, packets to published ports |
//! | `overlay` | the VXLAN device | what the underlay program left to it |
//! | `host` | `mesh0p` | what the host sends to endpoints and to published ports |
//! | `wireguard` | `meshwg0` | what the WireGuard engine decrypted |
//! | `published` | the host's other interfaces | packets to published ports |
//! | `published_l3` | the same without Ethernet headers | packets to published ports |
//!
//! `underlay`, `published` and `published_l3` leave all other packets untouched.
//!
//! `egress` stands at the egress of the data-path device, and sees what leaves after the host's own
//! NAT.
//!
//! Those are tc programs. `early`, an XDP program, takes before `underlay` what that would send on
//! the fast path out of the device that it came by.
//!
//! Beside them `connect4`, `sendmsg4`, `recvmsg4`, `getpeername4` and their twins for IPv6 stand at
//! the root of the cgroups, for the host's own sockets.

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

/// The programs run in the kernel only; their parts that do not need it are in the library, which
/// is tested here.
#[cfg(not(target_arch = "bpf"))]
fn main() {}
