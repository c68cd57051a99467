//! The kernel, shared by the agent's loops.

use std::fmt;
use std::sync::Arc;

use mesh_kernel::Kernel;
use parking_lot::Mutex;

use crate::blocking::blocking;

/// The kernel, for one caller at a time, on threads that may block.
#[derive(Clone)]
pub struct SharedKernel(Arc<Mutex<Box<dyn Kernel>>>);

impl fmt::Debug for SharedKernel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedKernel")
    }
}

impl SharedKernel {
    /// Shares a kernel.
    pub fn new(kernel: Box<dyn Kernel>) -> Self {
        Self(Arc::new(Mutex::new(kernel)))
    }

    /// Calls the kernel, after the calls of others.
    pub async fn call<R: Send + 'static>(
        &self,
        call: impl FnOnce(&mut dyn Kernel) -> R + Send + 'static,
    ) -> R {
        let kernel = self.clone();
        blocking(move || kernel.call_here(call)).await
    }

    /// The same, on the calling thread, which may block.
    pub fn call_here<R>(&self, call: impl FnOnce(&mut dyn Kernel) -> R) -> R {
        // What a panic has left of the kernel is found by the next observation.
        let mut kernel = self.0.lock();
        call(kernel.as_mut())
    }
}
