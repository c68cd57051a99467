//! Files that are damaged, and that an agent can start without.

use mesh_sys::durable::FileError;

/// Treats a damaged file as absent, for content that managers send again.
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
