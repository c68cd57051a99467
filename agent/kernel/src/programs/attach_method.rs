//! How programs are attached to devices.

use aya::util::KernelVersion;
use mesh_ebpf_types::ProgramKind;

/// How programs are attached to devices. Endpoints' programs are always tc filters: creating a tcx
/// link waits for all readers of the device (about 10 ms), although nothing is read before the
/// device is up, and there are no programs of others with which a link would have to coexist.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AttachMethod {
    /// tcx links (Linux 6.6): pinned, replaced atomically, side by side with others' programs.
    Tcx,
    /// Filters of a clsact queueing discipline, replaced atomically too.
    Clsact,
}

impl AttachMethod {
    /// The best that the running kernel has.
    pub fn of_kernel() -> Self {
        if KernelVersion::current().is_ok_and(|version| version >= KernelVersion::new(6, 6, 0)) {
            Self::Tcx
        } else {
            Self::Clsact
        }
    }

    /// How programs of one kind are attached.
    pub(super) const fn at(self, kind: ProgramKind) -> Self {
        match kind {
            ProgramKind::Endpoint => Self::Clsact,
            ProgramKind::Underlay
            | ProgramKind::Overlay
            | ProgramKind::Host
            | ProgramKind::Wireguard
            | ProgramKind::Egress
            | ProgramKind::Published
            | ProgramKind::PublishedLayer3
            | ProgramKind::EgressLayer3
            | ProgramKind::Guard
            | ProgramKind::GuardLayer3 => self,
        }
    }
}
