//! Values that count their changes.

use std::ops::{Deref, DerefMut};

/// A value, and how often it was borrowed to be changed.
#[derive(Debug, Default)]
pub struct Tracked<T> {
    value: T,
    version: u64,
}

impl<T> Tracked<T> {
    /// Tracks a value from now on.
    pub fn new(value: T) -> Self {
        Self { value, version: 0 }
    }

    /// Returns the number of changes so far.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }
}

impl<T> Deref for Tracked<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.value
    }
}

impl<T> DerefMut for Tracked<T> {
    fn deref_mut(&mut self) -> &mut T {
        self.version += 1;
        &mut self.value
    }
}
