//! Calls that may block, from tasks.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::{block_in_place, spawn_blocking};

/// Makes a call on the thread that this is called on, whose other tasks another thread takes over
/// meanwhile: an attach would wait for every change of threads. A runtime of one thread, as tests
/// have it, makes the call on another one.
pub async fn blocking<R: Send + 'static>(call: impl FnOnce() -> R + Send + 'static) -> R {
    if Handle::current().runtime_flavor() == RuntimeFlavor::MultiThread {
        return block_in_place(call);
    }
    match spawn_blocking(call).await {
        Ok(result) => result,
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
