//! Whether the XDP program is attached.

/// Whether the XDP program is attached to the data-path interface, and why.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct XdpStatus {
    /// Whether the program is attached.
    pub attached: bool,
    /// Why, or why not; empty before that is known.
    pub reason: String,
    /// Whether it should be attached, and is not.
    pub failed: bool,
}

impl XdpStatus {
    /// Creates the status of a program that is not attached, with the reason.
    pub fn off(reason: impl Into<String>) -> Self {
        Self { reason: reason.into(), ..Self::default() }
    }

    /// In a word; empty before that is known.
    pub fn mode(&self) -> &'static str {
        match (self.attached, self.reason.is_empty()) {
            (true, _) => "native",
            (false, false) => "off",
            (false, true) => "",
        }
    }

    /// Returns what `meshctl status` reports as a problem, if anything.
    pub fn problem(&self) -> Option<String> {
        self.failed.then(|| format!("XDP: {}", self.reason))
    }
}
