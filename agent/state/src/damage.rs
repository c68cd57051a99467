//! Files that are damaged, and that an agent can start without.

use mesh_sys::durable::FileError;

/// A damaged file of what can be learnt anew is no reason not to start.
pub(crate) fn without_damaged<T>(
    read: Result<Option<T>, FileError>,
    damage: &mut Vec<String>,
) -> Result<Option<T>, FileError> {
    match read {
        Err(error @ FileError::Content { .. }) => {
            tracing::warn!(%error, "starting without a damaged file");
            damage.push(error.to_string());
            Ok(None)
        }
        other => other,
    }
}
