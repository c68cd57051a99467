//! The programs. They read and write packets with [`mesh_ebpf`], and act through kernel helpers.

mod count;
mod egress;
mod encapsulate;
mod encrypt;
mod endpoint;
mod engine;
mod guard;
mod host;
mod host_access;
mod interfaces;
mod ipv6;
mod maps;
mod neighbour;
mod outside;
mod overlay;
mod receive;
mod received;
mod route;
mod segment;
mod sending;
mod sent;
mod service;
mod skb;
mod sockets;
mod start;
mod too_big;
mod underlay;
mod unresolved;
mod verdict;
mod wireguard;
mod wireguard_kernel;
mod xdp;

use aya_ebpf::bindings::{__sk_buff, bpf_sock_addr, xdp_md};
use service::flows;
use skb::Skb;
use xdp::Xdp;

/// Ingress of an endpoint's host-side device.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn endpoint(context: *mut __sk_buff) -> i32 {
    endpoint::endpoint(Skb::new(context)).code()
}

/// Ingress of the data-path device.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn underlay(context: *mut __sk_buff) -> i32 {
    underlay::underlay(Skb::new(context)).code()
}

/// Ingress of the VXLAN device.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn overlay(context: *mut __sk_buff) -> i32 {
    overlay::overlay(Skb::new(context)).code()
}

/// Ingress of `mesh0p`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn host(context: *mut __sk_buff) -> i32 {
    host::host(Skb::new(context)).code()
}

/// Ingress of `meshwg0`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn wireguard(context: *mut __sk_buff) -> i32 {
    wireguard::wireguard(Skb::new(context)).code()
}

/// Egress of the host's interfaces with Ethernet headers, the data-path device among them.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn egress(context: *mut __sk_buff) -> i32 {
    egress::egress(Skb::new(context)).code()
}

/// Egress of the host's layer-3 interfaces.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn egress_l3(context: *mut __sk_buff) -> i32 {
    egress::layer3(Skb::new(context)).code()
}

/// Ingress of the host's other interfaces that have Ethernet headers.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn published(context: *mut __sk_buff) -> i32 {
    interfaces::ethernet(Skb::new(context)).code()
}

/// Ingress of the host's layer-3 interfaces.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn published_l3(context: *mut __sk_buff) -> i32 {
    interfaces::layer3(Skb::new(context)).code()
}

/// Ingress of the host's other interfaces that have Ethernet headers and do not answer published
/// ports.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn guard(context: *mut __sk_buff) -> i32 {
    guard::ethernet(Skb::new(context)).code()
}

/// Ingress of the host's layer-3 interfaces that do not answer published ports.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn guard_l3(context: *mut __sk_buff) -> i32 {
    guard::layer3(Skb::new(context)).code()
}

/// XDP on the data-path device.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
extern "C" fn early(context: *mut xdp_md) -> xdp::Action {
    flows::early(Xdp::new(context))
}

macro_rules! socket_programs {
    ($($name:ident at $section:literal: $function:ident;)*) => {$(
        #[unsafe(no_mangle)]
        #[unsafe(link_section = $section)]
        extern "C" fn $name(context: *mut bpf_sock_addr) -> i32 {
            sockets::$function(context)
        }
    )*};
}

socket_programs! {
    connect4 at "cgroup/connect4": to_v4;
    connect6 at "cgroup/connect6": to_v6;
    sendmsg4 at "cgroup/sendmsg4": to_v4;
    sendmsg6 at "cgroup/sendmsg6": to_v6;
    recvmsg4 at "cgroup/recvmsg4": from_v4;
    recvmsg6 at "cgroup/recvmsg6": from_v6;
    getpeername4 at "cgroup/getpeername4": from_v4;
    getpeername6 at "cgroup/getpeername6": from_v6;
}

/// Some helpers require a GPL-compatible licence.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// No program panics. The compiler removes every bounds check, and the verifier would reject the
/// loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
