//! The commands of bpf(2) that aya does not expose: links by interface index, and what a link is
//! attached to.

#![expect(unsafe_code, reason = "bpf(2) takes a pointer to a union")]

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use aya::Pod;
use nix::libc;

const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_LOOKUP_ELEM: libc::c_long = 1;
const BPF_MAP_DELETE_ELEM: libc::c_long = 3;
const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_OBJ_PIN: libc::c_long = 6;
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_OBJ_GET_INFO_BY_FD: libc::c_long = 15;
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;
const BPF_MAP_UPDATE_BATCH: libc::c_long = 26;
const BPF_LINK_CREATE: libc::c_long = 28;
const BPF_LINK_UPDATE: libc::c_long = 29;
const BPF_LINK_DETACH: libc::c_long = 34;

const BPF_MAP_TYPE_ARRAY: u32 = 2;
const BPF_F_MMAPABLE: u32 = 1 << 10;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_TCX_EGRESS: u32 = 47;
const BPF_LINK_TYPE_TCX: u32 = 11;
const BPF_XDP: u32 = 37;
const BPF_LINK_TYPE_XDP: u32 = 6;
/// Run by the driver, or refused.
const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;

/// What a link of a device is attached to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DeviceLink {
    /// The device; 0 once it is gone.
    pub(super) ifindex: u32,
    /// Id of the program that runs.
    pub(super) program: u32,
}

#[repr(C)]
#[derive(Default)]
struct Object {
    path: u64,
    fd: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct InfoRequest {
    fd: u32,
    length: u32,
    buffer: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkCreate {
    program: u32,
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative: u32,
    padding: u32,
    expected_revision: u64,
}

#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link: u32,
    program: u32,
    flags: u32,
    old_program: u32,
}

/// The start of `struct bpf_link_info`, as far as tcx fills it; XDP ends it after the device.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    id: u32,
    program: u32,
    padding: u32,
    ifindex: u32,
    attach_type: u32,
}

/// One instruction of eBPF, `struct bpf_insn`.
#[repr(C)]
#[derive(Debug, Clone, Copy)]
pub(super) struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

impl Instruction {
    pub(super) const fn new(code: u8, destination: u8, source: u8, offset: i16, immediate: i32) -> Self {
        // Bit fields begin at the low end on little-endian machines, at the high end on others.
        let registers = if cfg!(target_endian = "little") {
            source << 4 | destination
        } else {
            destination << 4 | source
        };
        Self { code, registers, offset, immediate }
    }
}

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
struct ProgramLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    input_length: u32,
    output_length: u32,
    input: u64,
    output: u64,
    repeat: u32,
    duration: u32,
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
pub(super) fn create_array(name: &str, element_size: u32, elements: u32) -> io::Result<OwnedFd> {
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
pub(super) fn has<K: Pod, V: Pod>(map: BorrowedFd<'_>, key: &K, mut value: V) -> io::Result<bool> {
    let (key, value) = (std::ptr::from_ref(key) as u64, (&raw mut value) as u64);
    let mut attributes = Element { map: descriptor(map), key, value, ..Element::default() };
    match bpf(BPF_MAP_LOOKUP_ELEM, &mut attributes) {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}

/// Removes an entry of a map.
pub(super) fn delete<K: Pod>(map: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let key = std::ptr::from_ref(key) as u64;
    let mut attributes = Element { map: descriptor(map), key, ..Element::default() };
    bpf(BPF_MAP_DELETE_ELEM, &mut attributes).map(drop)
}

/// Writes entries of a hash, as many as both slices have. After an error some may have been
/// written.
pub(super) fn update_batch<K: Pod, V: Pod>(map: BorrowedFd<'_>, keys: &[K], values: &[V]) -> io::Result<()> {
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
pub(super) fn lookup_batches<K: Pod, V: Pod>(
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

/// Loads a tc program that needs no maps.
pub(super) fn load_classifier(instructions: &[Instruction]) -> io::Result<OwnedFd> {
    let mut attributes = ProgramLoad {
        kind: BPF_PROG_TYPE_SCHED_CLS,
        count: u32::try_from(instructions.len()).map_err(io::Error::other)?,
        instructions: instructions.as_ptr() as u64,
        licence: c"GPL".as_ptr() as u64,
        ..ProgramLoad::default()
    };
    bpf_fd(BPF_PROG_LOAD, &mut attributes)
}

/// Runs a program on a frame, and returns what it returns.
pub(super) fn test_run(program: &OwnedFd, frame: &[u8]) -> io::Result<u32> {
    let mut attributes = TestRun {
        program: descriptor(program.as_fd()),
        input_length: u32::try_from(frame.len()).map_err(io::Error::other)?,
        input: frame.as_ptr() as u64,
        repeat: 1,
        ..TestRun::default()
    };
    bpf(BPF_PROG_TEST_RUN, &mut attributes)?;
    Ok(attributes.result)
}

/// Attaches a program at a device's ingress or egress, behind those that are there. Detached by
/// [`link_detach`], or some time after the last descriptor and pin of the link are gone.
pub(super) fn tcx_attach(program: BorrowedFd<'_>, ifindex: u32, egress: bool) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: descriptor(program),
        ifindex,
        attach_type: if egress { BPF_TCX_EGRESS } else { BPF_TCX_INGRESS },
        ..LinkCreate::default()
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Attaches an XDP program to a device whose driver runs it. Refused where another one is attached;
/// detached as by [`tcx_attach`].
pub(super) fn xdp_attach(program: BorrowedFd<'_>, ifindex: u32) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: descriptor(program),
        ifindex,
        attach_type: BPF_XDP,
        flags: XDP_FLAGS_DRV_MODE,
        ..LinkCreate::default()
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Attaches a program to a cgroup and all below it, beside those that are there.
pub(super) fn cgroup_attach(
    program: BorrowedFd<'_>,
    cgroup: BorrowedFd<'_>,
    attach_type: u32,
) -> io::Result<OwnedFd> {
    let mut attributes = LinkCreate {
        program: descriptor(program),
        ifindex: descriptor(cgroup),
        attach_type,
        ..LinkCreate::default()
    };
    bpf_fd(BPF_LINK_CREATE, &mut attributes)
}

/// Whether a link to a device or a cgroup is attached, and the id of its program.
pub(super) fn link_state(link: BorrowedFd<'_>) -> io::Result<(bool, u32)> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?;
    let mut attributes = InfoRequest { fd: descriptor(link), length, buffer: (&raw mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    // Here a device's index begins, or a cgroup's id of 64 bits: 0 once it is detached. What
    // follows a device's index is 0 or, with an index of 0, means nothing.
    let is_device = matches!(info.kind, BPF_LINK_TYPE_TCX | BPF_LINK_TYPE_XDP);
    let attached = info.ifindex != 0 || (!is_device && info.attach_type != 0);
    Ok((attached, info.program))
}

/// The id of a program.
pub(super) fn program_id(program: BorrowedFd<'_>) -> io::Result<u32> {
    // The start of `struct bpf_prog_info`: its type and its id.
    let mut info = [0_u32; 2];
    let length = u32::try_from(size_of_val(&info)).map_err(io::Error::other)?;
    let mut attributes = InfoRequest { fd: descriptor(program), length, buffer: (&raw mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok(info[1])
}

/// Replaces the program of a link, atomically.
pub(super) fn link_update(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes =
        LinkUpdate { link: descriptor(link), program: descriptor(program), ..LinkUpdate::default() };
    bpf(BPF_LINK_UPDATE, &mut attributes).map(drop)
}

/// Detaches a link at once, whoever holds it. `InvalidInput` if it is no link, or the kernel is
/// older than 5.9.
pub(super) fn link_detach(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(BPF_LINK_DETACH, &mut descriptor(link)).map(drop)
}

/// What a link is attached to; `None` if it is no tcx link.
pub(super) fn tcx_info(link: BorrowedFd<'_>) -> io::Result<Option<DeviceLink>> {
    device_info(link, BPF_LINK_TYPE_TCX)
}

/// What a link is attached to; `None` if it is no XDP link.
pub(super) fn xdp_info(link: BorrowedFd<'_>) -> io::Result<Option<DeviceLink>> {
    device_info(link, BPF_LINK_TYPE_XDP)
}

fn device_info(link: BorrowedFd<'_>, kind: u32) -> io::Result<Option<DeviceLink>> {
    let mut info = LinkInfo::default();
    let length = u32::try_from(size_of::<LinkInfo>()).map_err(io::Error::other)?;
    let mut attributes = InfoRequest { fd: descriptor(link), length, buffer: (&raw mut info) as u64 };
    bpf(BPF_OBJ_GET_INFO_BY_FD, &mut attributes)?;
    Ok((info.kind == kind).then_some(DeviceLink { ifindex: info.ifindex, program: info.program }))
}

/// Pins an object at a path on bpffs.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object { path: path.as_ptr() as u64, fd: descriptor(object), flags: 0 };
    bpf(BPF_OBJ_PIN, &mut attributes).map(drop)
}

/// Opens a pinned object.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = Object { path: path.as_ptr() as u64, ..Object::default() };
    bpf_fd(BPF_OBJ_GET, &mut attributes)
}

fn descriptor(fd: BorrowedFd<'_>) -> u32 {
    // A descriptor that is open is not negative.
    fd.as_raw_fd().cast_unsigned()
}

fn bpf_fd<T>(command: libc::c_long, attributes: &mut T) -> io::Result<OwnedFd> {
    let fd = RawFd::try_from(bpf(command, attributes)?).map_err(io::Error::other)?;
    // SAFETY: the kernel has just made this descriptor for us, and nothing else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<libc::c_long> {
    // SAFETY: the kernel reads (and for some commands writes) `size_of::<T>()` bytes at
    // `attributes`, which is a `repr(C)` prefix of `union bpf_attr` for the command. Pointers
    // inside it live until the call returns.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
