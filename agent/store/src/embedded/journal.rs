//! The layout of the file
//!
//! | table | key | value |
//! | --- | --- | --- |
//! | `meta` | `"format"`, `"revision"`, `"compacted"` | a number |
//! | `records` | (revision, key) | (create revision, version, value or none for a deletion) |
//!
//! Records are never changed. A compaction deletes those that no read or watch after it needs.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process;

use redb::backends::FileBackend;
use redb::{Builder, Database, DatabaseError, ReadableDatabase, ReadableTable, TableDefinition, TableError};

use crate::mvcc::{Mvcc, Record};
use crate::{Key, OpenError, Revision, Value};

/// The format that this version reads and writes; another one goes with any change of the layout.
const FORMAT: u64 = 1;

/// Bytes of redb's cache. Reads are served from memory, so it only has the pages that commits
/// touch.
const CACHE: usize = 4 << 20;

const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const RECORDS: TableDefinition<RecordId, StoredRecord> = TableDefinition::new("records");

/// Revision and key.
type RecordId = (u64, &'static [u8]);
/// Create revision, version, and value.
type StoredRecord = (u64, u64, Option<&'static [u8]>);

/// The open file. What its methods return `Ok` for is on disk.
pub(super) struct Journal {
    path: PathBuf,
    database: Database,
}

impl Journal {
    /// Makes an empty journal. It appears at `path` in one step and complete.
    pub(super) fn create(path: &Path) -> Result<Self, OpenError> {
        if path.try_exists().map_err(|error| OpenError::of_io(path, error))? {
            return Err(OpenError::Exists { path: path.to_owned() });
        }
        let unfinished = Unfinished::new(path);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished.0)
            .map_err(|error| OpenError::of_io(path, error))?;
        let database = builder()
            .create_with_backend(FileBackend::new(file).map_err(|error| database_error(path, error))?)
            .map_err(|error| database_error(path, error))?;
        let journal = Self { path: path.to_owned(), database };
        journal.initialise().map_err(|error| damaged_or_io(path, error))?;
        // Unlike a rename, a link never replaces a file that another process has just made.
        fs::hard_link(&unfinished.0, path).map_err(|error| OpenError::of_io(path, error))?;
        drop(unfinished);
        sync_directory(path).map_err(|error| OpenError::of_io(path, error))?;
        Ok(journal)
    }

    /// Opens a journal, checks all of it, and reads it.
    pub(super) fn open(path: &Path) -> Result<(Self, Mvcc), OpenError> {
        let database = builder().open(path).map_err(|error| database_error(path, error))?;
        let journal = Self { path: path.to_owned(), database };
        let mvcc = journal.load()?;
        Ok((journal, mvcc))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Adds the pending records.
    pub(super) fn append(&self, mvcc: &Mvcc) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for (key, record) in mvcc.pending() {
                records.insert(
                    (record.mod_revision.0, key.as_bytes()),
                    (record.create_revision.0, record.version, record.value.as_ref().map(Value::as_bytes)),
                )?;
            }
            transaction.open_table(META)?.insert("revision", mvcc.head().0)?;
        }
        transaction.commit()?;
        Ok(())
    }

    /// Removes the records that a compaction makes superfluous.
    pub(super) fn compact(&self, up_to: Revision, superseded: &[(Revision, Key)]) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut records = transaction.open_table(RECORDS)?;
            for (revision, key) in superseded {
                records.remove((revision.0, key.as_bytes()))?;
            }
            transaction.open_table(META)?.insert("compacted", up_to.0)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn initialise(&self) -> Result<(), redb::Error> {
        let transaction = self.database.begin_write()?;
        {
            let mut meta = transaction.open_table(META)?;
            meta.insert("format", FORMAT)?;
            meta.insert("revision", Revision::FIRST.0)?;
            meta.insert("compacted", Revision::FIRST.0)?;
            transaction.open_table(RECORDS)?;
        }
        transaction.commit()?;
        Ok(())
    }

    fn load(&self) -> Result<Mvcc, OpenError> {
        let damaged =
            |reason: &str| OpenError::Damaged { path: self.path.clone(), reason: reason.to_owned() };
        let failed = |error: redb::Error| damaged_or_io(&self.path, error);

        let transaction = self.database.begin_read().map_err(|error| failed(error.into()))?;
        let meta = transaction.open_table(META).map_err(|error| self.table_error(error))?;
        let number = |name: &str| {
            let found = meta.get(name).map_err(|error| failed(error.into()))?;
            found.map(|number| number.value()).ok_or_else(|| damaged(&format!("it does not say its {name}")))
        };
        let found = number("format")?;
        if found != FORMAT {
            return Err(OpenError::OtherFormat { path: self.path.clone(), found, expected: FORMAT });
        }
        let (compacted, head) = (Revision(number("compacted")?), Revision(number("revision")?));
        if compacted < Revision::FIRST || compacted > head {
            return Err(damaged("its revisions contradict each other"));
        }

        let mut mvcc = Mvcc::restored(compacted, head);
        let records = transaction.open_table(RECORDS).map_err(|error| self.table_error(error))?;
        for entry in records.iter().map_err(|error| failed(error.into()))? {
            let (id, record) = entry.map_err(|error| failed(error.into()))?;
            let (mod_revision, key) = id.value();
            let (create_revision, version, value) = record.value();
            if mod_revision > head.0 {
                return Err(damaged("it has records of revisions to come"));
            }
            mvcc.load(
                Key::from(key),
                Record {
                    mod_revision: Revision(mod_revision),
                    create_revision: Revision(create_revision),
                    version,
                    value: value.map(Value::from),
                },
            );
        }
        Ok(mvcc)
    }

    fn table_error(&self, error: TableError) -> OpenError {
        match error {
            TableError::Storage(error) => damaged_or_io(&self.path, error.into()),
            _ => OpenError::Damaged {
                path: self.path.clone(),
                reason: "it is a database of something else".to_owned(),
            },
        }
    }
}

fn builder() -> Builder {
    let mut builder = Builder::new();
    // The check costs little next to reading everything, and without it redb trusts a damaged file.
    builder.set_cache_size(CACHE).set_check_integrity_on_open(true);
    builder
}

fn database_error(path: &Path, error: DatabaseError) -> OpenError {
    match error {
        DatabaseError::DatabaseAlreadyOpen | DatabaseError::LockProtocolMismatch => {
            OpenError::Locked { path: path.to_owned() }
        }
        DatabaseError::UpgradeRequired(version) => OpenError::Damaged {
            path: path.to_owned(),
            reason: format!("it has version {version} of the redb file format"),
        },
        error => damaged_or_io(path, error.into()),
    }
}

fn damaged_or_io(path: &Path, error: redb::Error) -> OpenError {
    match error {
        redb::Error::Io(error) => OpenError::of_io(path, error),
        redb::Error::Corrupted(reason) => OpenError::Damaged { path: path.to_owned(), reason },
        error => OpenError::Damaged { path: path.to_owned(), reason: error.to_string() },
    }
}

/// A file that is made beside its final place; this name of it is removed in any case.
struct Unfinished(PathBuf);

impl Unfinished {
    fn new(path: &Path) -> Self {
        let mut name = path.as_os_str().to_owned();
        name.push(format!(".{}.new", process::id()));
        let unfinished = Self(name.into());
        // A process of the same id may have crashed here before.
        unfinished.remove();
        unfinished
    }

    fn remove(&self) {
        // It should be absent. Any other error appears when the file is created again.
        let _: std::io::Result<()> = fs::remove_file(&self.0);
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        self.remove();
    }
}

/// Makes a new name in the directory of `path` durable.
fn sync_directory(path: &Path) -> std::io::Result<()> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    File::open(directory)?.sync_all()
}
