//! Maps: arrays that can be mapped into memory, and hashes in batches.

use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

use aya::Pod;

use super::{bpf, bpf_fd, descriptor};

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;

#[repr(C)]
#[derive(Default)]
struct MapCreate {
    kind: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    flags: u32,
    inner: u32,
    numa_node: u32,
    name: [u8; 16],
}

#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
#[derive(Default)]
struct Batch {
    place: u64,
    next: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Makes an array of so many elements that may be mapped into memory. `name`: at most 15 bytes.
pub fn create_array(name: &str, element_size: u32, elements: u32) -> io::Result<OwnedFd> {
    let mut attributes = MapCreate {
        kind: BPF_MAP_TYPE_ARRAY,
        key_size: 4,
        value_size: element_size,
        max_entries: elements,
        flags: BPF_F_MMAPABLE,
        ..MapCreate::default()
    };
    // The last byte stays zero.
    attributes.name.iter_mut().take(15).zip(name.bytes()).for_each(|(place, byte)| *place = byte);
    bpf_fd(BPF_MAP_CREATE, &mut attributes)
}

/// Whether a map has an entry.
pub fn has<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, mut value: V) -> io::Result<bool> {
    let (key, value) = (std::ptr::from_ref(key) as u64, (&raw mut value) as u64);
    let mut attributes = Element { map: descriptor(map), key, value, ..Element::default() };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an entry of a map.
pub fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let key = std::ptr::from_ref(key) as u64;
    let mut attributes = Element { map: descriptor(map), key, ..Element::default() };
    bpf(BPF_MAP_DELETE_ELEM, &mut attributes).map(drop)
}

/// Writes entries of a hash, as many as both slices have. After an error some may have been
/// written.
pub fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
    let count = u32::try_from(keys.len().min(values.len())).map_err(io::Error::other)?;
    let mut attributes = Batch {
        keys: keys.as_ptr() as u64,
        values: values.as_ptr() as u64,
        count,
        map: descriptor(map),
        ..Batch::default()
    };
    bpf(BPF_MAP_UPDATE_BATCH, &mut attributes).map(drop)
}

/// Reads a hash, whose keys and values have these types' sizes, in batches of at most `size`
/// entries; more where so many share a bucket.
pub fn lookup_batches<K: Pod, V: Pod>(
    map: BorrowedFd<'_>,
    size: usize,
    mut take: impl FnMut(&[K], &[V]),
) -> io::Result<()> {
    let mut room = size;
    let (mut place, mut next) = (0_u32, 0_u32);
    let mut first = true;
    loop {
        let (mut keys, mut values) = (Vec::<K>::with_capacity(room), Vec::<V>::with_capacity(room));
        let mut attributes = Batch {
            place: if first { 0 } else { (&raw mut place) as u64 },
            next: (&raw mut next) as u64,
            keys: keys.as_mut_ptr() as u64,
            values: values.as_mut_ptr() as u64,
            count: u32::try_from(room).map_err(io::Error::other)?,
            map: descriptor(map),
            ..Batch::default()
        };
        let end = match bpf(BPF_MAP_LOOKUP_BATCH, &mut attributes) {
            Ok(_) => false,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => true,
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && room < size << 8 => {
                room *= 2;
                continue;
            }
            Err(error) => return Err(error),
        };
        let count = (attributes.count as usize).min(room);
        // SAFETY: the kernel has written so many keys and values, and any bytes are a value of a
        // `Pod`.
        unsafe {
            keys.set_len(count);
            values.set_len(count);
        }
        take(&keys, &values);
        if end {
            return Ok(());
        }
        (place, first) = (next, false);
    }
}
