//! The steps from what is to what should be; they leave nothing to choose.

/// One step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {}

/// The steps, in the order to take them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Plan {
    /// The steps.
    pub actions: Vec<Action>,
}
