//! The programs: [`mesh_ebpf`] reads and writes packets, the maps decide, the kernel's helpers act.

mod count;
mod encapsulate;
mod endpoint;
mod host;
mod maps;
mod neighbour;
mod outside;
mod overlay;
mod receive;
mod received;
mod sent;
mod service;
mod skb;
mod too_big;
mod underlay;

use aya_ebpf::bindings::__sk_buff;
use skb::Skb;

/// A program's verdict, as tc knows them.
type Verdict = i32;

/// Leave the packet alone: the next program, or the stack, has it. (`TCX_NEXT`, `TC_ACT_UNSPEC`)
const PASS: Verdict = -1;
/// Drop the packet. (`TCX_DROP`, `TC_ACT_SHOT`)
const DROP: Verdict = 2;
/// Not the kernel's: no way is remembered, the packet is to be looked at as a whole.
const LONG_WAY: Verdict = 0x200;
/// Not the kernel's: the packet was not changed, others decide.
const GO_ON: Verdict = 0x201;
/// Not the kernel's: the packet has another destination now, others decide how it gets there.
const TRANSLATED: Verdict = 0x202;

/// Ingress of an endpoint's host-side device.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn endpoint(context: *mut __sk_buff) -> Verdict {
    endpoint::endpoint(Skb::new(context))
}

/// Ingress of the data-path device.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn underlay(context: *mut __sk_buff) -> Verdict {
    underlay::underlay(Skb::new(context))
}

/// Ingress of the VXLAN device.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn overlay(context: *mut __sk_buff) -> Verdict {
    overlay::overlay(Skb::new(context))
}

/// Ingress of `mesh0p`.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
extern "C" fn host(context: *mut __sk_buff) -> Verdict {
    host::host(Skb::new(context))
}

/// Some helpers are for programs under a GPL-compatible licence only.
#[unsafe(no_mangle)]
#[unsafe(link_section = "license")]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

/// No program panics: the compiler removes every bounds check, and the verifier would refuse the loop.
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
