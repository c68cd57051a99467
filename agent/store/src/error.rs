//! What can go wrong with a store that is open, and when one is opened

use std::io;
use std::path::{Path, PathBuf};

use crate::{Key, Revision};

/// Why an operation on a store failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// A read or watch of history that a compaction has removed. Range again, then watch from
    /// there.
    #[error("revision {requested} has been compacted: history starts at revision {compacted}")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision that can still be read.
        compacted: Revision,
    },
    /// A read or compaction at a revision that does not exist yet.
    #[error("revision {requested} is in the future: the store is at revision {current}")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The store's revision.
        current: Revision,
    },
    /// A transaction that writes one key twice; nothing of it was executed.
    #[error("key {key} is written twice in one transaction")]
    DuplicateKey {
        /// The key.
        key: Key,
    },
    /// A transaction that writes the empty key; nothing of it was executed.
    #[error("the empty key cannot be written")]
    EmptyKey,
    /// The store's file could not be written or synced. The transaction may or may not be found
    /// done later.
    #[error("cannot write the store {}: {source}", path.display())]
    Disk {
        /// The store's file.
        path: PathBuf,
        /// The reason; shared, as one write may carry many transactions.
        source: std::sync::Arc<dyn std::error::Error + Send + Sync>,
    },
    /// The store was closed, or its writer ended.
    #[error("the store is closed")]
    Closed,
}

impl StoreError {
    /// What a person can do about it, when there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Disk { .. } => Some(
                "check that the disk is not full, read-only or failing; writes resume when it works again",
            ),
            Self::Compacted { .. }
            | Self::FutureRevision { .. }
            | Self::DuplicateKey { .. }
            | Self::EmptyKey
            | Self::Closed => None,
        }
    }
}

/// Why an embedded store could not be opened or created.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such file.
    #[error("there is no store at {}", path.display())]
    Missing {
        /// The store's file.
        path: PathBuf,
    },
    /// A store was to be made where there is a file already.
    #[error("{} exists already", path.display())]
    Exists {
        /// The file.
        path: PathBuf,
    },
    /// Another process has the store open.
    #[error("the store {} is in use by another process", path.display())]
    Locked {
        /// The store's file.
        path: PathBuf,
    },
    /// The file or its directory may not be read or written.
    #[error("cannot open the store {}: {source}", path.display())]
    Permission {
        /// The store's file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// The file is truncated, has corrupt pages, or is no store at all.
    #[error("the store {} is damaged: {reason}", path.display())]
    Damaged {
        /// The store's file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The file was written in a format that this version does not read.
    #[error("the store {} has format {found}, this version reads format {expected}", path.display())]
    OtherFormat {
        /// The store's file.
        path: PathBuf,
        /// The format of the file.
        found: u64,
        /// The format that this version reads and writes.
        expected: u64,
    },
    /// Any other input or output error.
    #[error("cannot open the store {}: {source}", path.display())]
    Io {
        /// The store's file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
}

impl OpenError {
    /// Which error of opening an input or output error is.
    pub(crate) fn of_io(path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::Missing { path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
                Self::Permission { path, source }
            }
            // A file that ends too early, or does not start as a store does.
            io::ErrorKind::UnexpectedEof => Self::Damaged { path, reason: "it is truncated".to_owned() },
            io::ErrorKind::InvalidData => Self::Damaged { path, reason: source.to_string() },
            _ => Self::Io { path, source },
        }
    }

    /// What a person can do about it, when there is something.
    pub fn hint(&self) -> Option<&'static str> {
        match self {
            Self::Missing { .. } => Some("check the data directory, or restore a backup"),
            Self::Exists { .. } => Some("open it instead, or move it away first"),
            Self::Locked { .. } => Some("another meshd is running with this data directory; stop it first"),
            Self::Permission { .. } => Some("run as the owner of the data directory (root)"),
            Self::Damaged { .. } => Some("move the file away and restore a backup"),
            Self::OtherFormat { found, expected, .. } if found > expected => {
                Some("a newer version wrote it; run that version, or restore a backup made by this one")
            }
            Self::OtherFormat { .. } => {
                Some("an older version wrote it; make a backup with that version and restore it")
            }
            Self::Io { .. } => Some("check that the disk is not full, read-only or failing"),
        }
    }
}
