//! The programs.

/// A program of the datapath, named by where it stands. All are tc classifiers at a device's ingress.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ProgramKind {
    /// Host-side device of an endpoint: all that the container sends.
    Endpoint,
    /// Data-path device: VXLAN from other nodes.
    Underlay,
    /// VXLAN device: what the underlay program left to it.
    Overlay,
    /// `mesh0p`: what the host sends to endpoints.
    Host,
}

impl ProgramKind {
    /// All programs.
    pub const ALL: [Self; 4] = [Self::Endpoint, Self::Underlay, Self::Overlay, Self::Host];

    /// The program's name in the object, in pins and in messages.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Endpoint => "endpoint",
            Self::Underlay => "underlay",
            Self::Overlay => "overlay",
            Self::Host => "host",
        }
    }
}
